"""Draw docs/concept.png: digits whose patches fade step by step, and what each block then costs.

python docs/figures/concept.py
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import SubFigure
from numpy.typing import NDArray

import ssm_models
from search.data.dataset import open_data
from spaces import PruningSchedule

MODEL, DATA = "vim_nano", "embedded"
# A point of the front that the search of docs/tutorial.md found; any schedule can stand here.
SCHEDULE = PruningSchedule.parse("1:0.78,6:0.45,8:0.5;context=conv")
IMAGES = (0, 1, 2)  # of val, in the order that a study evaluates them
PAPER, INK, QUIET, BLUE, GREY = "#ffffff", "#1f2328", "#59636e", "#0969da", "#d8dee4"
TILES = LinearSegmentedColormap.from_list("tiles", ["#1b3a57", "#ffd33d"])
FADED = (0.34, 0.16, 0.07)  # opacity of a pruned patch: by the latest step, by the one before, by an earlier one

mpl.rcParams |= {"font.size": 10, "text.color": INK, "axes.labelcolor": QUIET, "xtick.color": QUIET,
                 "ytick.color": QUIET, "axes.edgecolor": GREY, "axes.spines.top": False, "axes.spines.right": False,
                 "figure.facecolor": PAPER, "axes.facecolor": PAPER}  # fmt: skip


def main() -> None:
    """Run the pruned model on a few digits and draw what it keeps of them, above the cost of each block."""
    model = ssm_models.build(MODEL).eval()
    table = ssm_models.cost_table(model)
    dense = table.by_block(PruningSchedule())
    shares = [pruned / whole for pruned, whole in zip(table.by_block(SCHEDULE), dense, strict=True)]
    total = table.flops(SCHEDULE) / table.dense

    count = max(IMAGES) + 1
    batches = open_data(DATA).batches(model.pretrained_cfg, model.img_size, images=count, batch_size=count)
    images = next(iter(batches))[0][list(IMAGES)]
    pictures = batches.pixels(count)[list(IMAGES), 0].numpy()
    model.set_schedule(SCHEDULE)
    with torch.inference_mode():
        answers = model(images).argmax(1).tolist()
        kept = [patches.numpy() for patches in model.kept_patches(images)]

    stage = model.layout.stages[0]
    figure = plt.figure(figsize=(8.4, 6.0), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.3, 1])
    for subfigure in (figure, above, below):
        subfigure.set_facecolor(PAPER)
    _tokens(above, pictures, kept, answers, (stage.height, stage.width))
    _costs(below.subplots(), shares, total)
    figure.savefig(Path(__file__).parents[1] / "concept.png", dpi=150, metadata={"Software": None})


def _tokens(
    figure: SubFigure,
    pictures: NDArray[np.uint8],
    kept: Sequence[NDArray[np.int64]],
    answers: Sequence[int],
    grid: tuple[int, int],
) -> None:
    """Draw a row for each image: all of its patches, then those left after each step, the pruned ones fading."""
    tokens = grid[0] * grid[1]
    axes = figure.subplots(len(pictures), len(kept) + 1)
    for row, picture in enumerate(pictures):
        opacity = np.ones(tokens)
        for column, cell in enumerate(axes[row]):
            if column:
                step = column - 1
                stays = np.isin(np.arange(tokens), kept[step][row])
                before = np.arange(tokens) if step == 0 else kept[step - 1][row]
                latest = np.isin(np.arange(tokens), before) & ~stays
                opacity = np.where(stays, 1.0, np.where(latest, FADED[0], _next_shade(opacity)))
            _picture(cell, picture, opacity.reshape(grid))
        axes[row, -1].text(1.08, 0.5, f"answer: {answers[row]}", transform=axes[row, -1].transAxes, va="center")
    for column, cell in enumerate(axes[0]):
        if column == 0:
            cell.set_title(f"input\n{tokens} tokens", fontsize=10, color=INK)
        else:
            left = kept[column - 1].shape[1]
            cell.set_title(f"after block {SCHEDULE.steps[column - 1].after}\n{left} tokens", fontsize=10, color=INK)


def _next_shade(opacity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the opacity one step later of patches that were pruned before."""
    return np.where(opacity == FADED[0], FADED[1], FADED[2])


def _picture(axes: Axes, picture: NDArray[np.uint8], opacity: NDArray[np.float64]) -> None:
    """Draw one image with an opacity for each patch, and thin lines between patches."""
    height, width = opacity.shape
    scale = (picture.shape[0] // height, picture.shape[1] // width)
    axes.imshow(picture, cmap=TILES, vmin=0, vmax=255, alpha=np.kron(opacity, np.ones(scale)),
                extent=(0, width, height, 0), interpolation="nearest")  # fmt: skip
    axes.hlines(range(1, height), 0, width, PAPER, lw=0.8)
    axes.vlines(range(1, width), 0, height, PAPER, lw=0.8)
    axes.set_axis_off()


def _costs(axes: Axes, shares: Sequence[float], total: float) -> None:
    """Draw the FLOPs of each block as a share of what the dense block costs."""
    blocks = np.arange(1, len(shares) + 1)
    axes.bar(blocks, 1, color=GREY, width=0.82)
    axes.bar(blocks, shares, color=BLUE, width=0.82)
    for block, share in zip(blocks, shares, strict=True):
        axes.text(block, share - 0.05, f"{share:.0%}", color=PAPER, ha="center", va="top", fontsize=9)
    for step in SCHEDULE.steps:
        axes.axvline(step.after + 0.5, color=INK, lw=1, ls=(0, (3, 2)))
    axes.set_xticks(blocks)
    axes.set_xlabel(f"block of {MODEL}; dashed: a pruning step")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(f"FLOPs of each block, of dense: in all {total:.1%}", fontsize=10, color=INK, loc="left")
    axes.set_xlim(0.5, len(shares) + 0.5)


if __name__ == "__main__":
    main()
