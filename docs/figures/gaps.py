"""Draw docs/gaps.svg: what hidden-state alignment adds where tokens were pruned, on one digit.

python docs/figures/gaps.py
"""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

import ssm_models
from search.data.dataset import open_data
from spaces import PruningSchedule

KEPT, GONE, INK = "#0072b2", "#e69f00", "#555555"
BLOCK, KEEP = 4, 0.4

mpl.rcParams |= {"font.size": 9, "svg.hashsalt": "prunefront", "svg.fonttype": "none", "axes.spines.top": False,
                 "axes.spines.right": False}  # fmt: skip


def main() -> None:
    """Prune one image behind a block and show Δ of all positions, and the decay that each kept one stands for."""
    model = ssm_models.build("vim_nano").eval()
    images = next(iter(open_data("embedded").batches(model.pretrained_cfg, model.img_size, images=8, batch_size=8)))[
        0
    ]
    model.set_schedule(PruningSchedule.parse(f"{BLOCK}:{KEEP}"))
    image = 3
    with torch.inference_mode():
        _, view, _ = model.run_blocks(images)
        kept = set(view.all_positions()[image].tolist())
        model.set_schedule(None)
        x, dense = model.embed(images), model.first_view(images)
        for block in model.blocks[: BLOCK - 1]:
            x, _ = block(x, dense, False)
        _, signals = model.blocks[BLOCK - 1](x, dense, True)
        delta = signals.deltas()[0][image].mean(-1).numpy()
    positions = np.arange(len(delta))
    gone = np.array([p not in kept for p in positions])
    sums, waiting = np.zeros_like(delta), 0.0
    for p in positions:
        if gone[p]:
            waiting += delta[p]
        else:
            sums[p], waiting = waiting, 0.0

    figure = plt.figure(figsize=(9.2, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.2])
    _picture(left.subplots(), images[image], gone, model.protected[0])
    before, after = right.subplots(2, 1, sharex=True)
    before.bar(positions, np.where(gone, 0, delta), color=KEPT, label="kept")
    before.bar(positions, np.where(gone, delta, 0), color=GONE, label="pruned")
    before.set_ylabel("Δ, mean of channels")
    before.set_title(
        f"before: every position decays the state by exp(A·Δ), forward scan of block {BLOCK}", fontsize=9
    )
    before.legend(frameon=False, ncols=2, loc="upper right")
    ranks = np.flatnonzero(~gone)
    after.bar(ranks, delta[ranks], color=KEPT, label="own Δ")
    after.bar(ranks, sums[ranks], bottom=delta[ranks], color=GONE, label="gap: Σ Δ of the pruned before it")
    after.set_title("after: only kept positions are scanned; the gap is added to the next one's exponent", fontsize=9)
    after.set_ylabel("exponent of the decay")
    after.set_xlabel("position in the sequence (the cls token stands in the middle)")
    after.legend(frameon=False, ncols=2, loc="upper right")
    for axes in (before, after):
        axes.margins(x=0.01)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    figure.savefig(Path(__file__).parents[1] / "gaps.svg", metadata={"Date": None})


def _picture(axes: plt.Axes, image: torch.Tensor, gone: np.ndarray, cls: int) -> None:
    """Show the image, and cover the patches that are pruned."""
    patches = np.delete(gone, cls)
    side, pixels = int(len(patches) ** 0.5), image.shape[-1]
    grey = image.mean(0).numpy()
    axes.imshow(grey, cmap="gray_r", extent=(0, side, side, 0))
    for patch in np.flatnonzero(patches):
        row, column = divmod(int(patch), side)
        axes.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=GONE, alpha=0.55, edgecolor="white"))
    axes.set_axis_off()
    axes.set_title(
        f"{pixels}×{pixels} digit, {patches.sum()} of {len(patches)}\npatches pruned", fontsize=9, color=INK
    )


if __name__ == "__main__":
    main()
