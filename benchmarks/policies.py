"""What becomes of accuracy under each choice that the literature leaves open: the tables of docs/alignment.md.

Every row is one pruning method, every column a share of the dense FLOPs: steps after a quarter, half and three
quarters of the blocks with one keep ratio, the largest that costs no more. No fine-tuning; all val images.

    python benchmarks/policies.py --model vim_nano --data embedded
    python benchmarks/policies.py --model vim_nano_patch8 --checkpoint run/model.safetensors --data folder:sign-digits

Rows marked * are no option of a schedule: they are patched in here, to see whether they should be one.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import ssm_models
from search.data.dataset import open_data
from search.evaluation.evaluator import Evaluator
from search.models import open_model
from spaces import PruningSchedule
from spaces.schedule import ALIGNMENT
from ssm_models import CostTable, PrunableModel, importance
from ssm_models import scan as scan_operator
from ssm_models.families import directional_scan, plain_mamba
from ssm_models.gather import take
from ssm_models.token_view import TokenView

MIXER = plain_mamba.PlainMambaMixer


@contextmanager
def score_before_the_gate() -> Iterator[None]:
    """Score by the clip of the scan outputs of the last block before their gate, directions added up."""
    outputs: list[Tensor] = []

    def scan(*arguments: Any, original: Any = scan_operator.channel_last_scan, **options: Any) -> Tensor:
        y: Tensor = original(*arguments, **options)
        outputs.append(original(*arguments, **{**options, "z": None}))
        return y

    def score(signals: importance.Signals) -> Tensor:
        mine = outputs[-max(1, len(signals.outputs)) :]
        outputs.clear()
        return sum(mine[1:], mine[0]).clamp(min=0).sum(-1)

    with (
        patch.object(directional_scan, "channel_last_scan", scan),
        patch.object(plain_mamba, "channel_last_scan", scan),
        patch.dict(importance.SCORES, clip=score),
    ):
        yield


@contextmanager
def frozen_delta() -> Iterator[None]:
    """Under `freeze`, take the input of pruned tokens away: the policy `frozen`, with the context `conv`."""

    def scan(u: Tensor, *arguments: Any, original: Any = scan_operator.channel_last_scan, **options: Any) -> Tensor:
        emit = options.get("emit")
        if emit is not None:
            u = u * torch.zeros_like(u[..., :1]).scatter(1, emit[..., None], 1.0)
        y: Tensor = original(u, *arguments, **options)
        return y

    modules = (directional_scan, plain_mamba)
    with ExitStack() as patches:
        for module in modules:
            patches.enter_context(patch.object(module, "channel_last_scan", scan))
        yield


@contextmanager
def gaps_along_the_path() -> Iterator[None]:
    """Let each of PlainMamba's directions pass over the pruned tokens of its own path, not in raster order."""
    running: list[Any] = []  # the view and the grid of the mixer that runs

    def forward(self: Any, x: Tensor, view: TokenView, signal: bool, original: Any = MIXER.forward) -> Any:
        running[:] = [view, self.grid]
        return original(self, x, view, signal)

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, original: Any = scan_operator.channel_last_scan,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        view, grid = running
        kept_positions = view.sets.kept_positions
        if options["gap"] is None or kept_positions is None:
            y: Tensor = original(u, delta, A, B, C, **options)
            return y
        names = ("D", "z", "delta_bias", "delta_softplus", "orders", "B_orders")
        D, z, bias, softplus, orders, B_orders = (options[name] for name in names)
        tokens = torch.from_numpy(plain_mamba.zigzag(*grid)[0])
        steps = tokens.argsort(1)[:, kept_positions].transpose(0, 1).sort(2).values
        skipped = steps - F.pad(steps[..., :-1], (1, 0), value=-1) - 1
        total = torch.zeros_like(u)
        for p in range(4):
            index = orders[:, p].expand(len(u), -1)
            along = skipped[:, p, :, None] * F.softplus(bias)
            part = original(take(u, index), delta, A, B + B_orders[:, p], C, D, None, bias, softplus, along)
            total = total.scatter_add(1, index[..., None].expand_as(part), part)
        return total * F.silu(z)

    with patch.object(MIXER, "forward", forward), patch.object(plain_mamba, "channel_last_scan", scan):
        yield


Row = tuple[str, dict[str, str], Callable[[], AbstractContextManager[None]]]


def rows(model: PrunableModel) -> list[Row]:
    """Return (label, method, patch) of every row."""
    none = nullcontext
    found: list[Row] = [("score clip, alignment on, context drop (the default)", {}, none)]
    found += [(f"score {name}", {"importance": name}, none) for name in model.importances if name != "clip"]
    found += [(f"alignment {name}", {"alignment": name}, none) for name in ALIGNMENT if name != "on"]
    found += [("score clip of the output before the gate *", {}, score_before_the_gate)]
    if isinstance(model, plain_mamba.PlainMamba):
        found += [("gaps counted along each path *", {}, gaps_along_the_path)]
    for context in (context for context in model.contexts if context != "drop"):
        for name in ("clip", "random"):
            found.append((f"context {context}, score {name}", {"context": context, "importance": name}, none))
        if context in ("zeros", "conv"):
            found += [(f"context {context}, alignment {name}", {"context": context, "alignment": name}, none)
                      for name in ALIGNMENT if name != "on"]  # fmt: skip
    found += [("context conv, alignment frozen * (at the FLOPs of freeze)", {"context": "freeze"}, frozen_delta)]
    return found


def at_share(table: CostTable, blocks: list[int], share: float, method: dict[str, str]) -> PruningSchedule | None:
    """Return the schedule with the largest keep ratio that costs at most `share` of the dense FLOPs."""
    for percent in range(99, 4, -1):
        schedule = PruningSchedule.of([(block, percent / 100) for block in blocks], **method)
        if table.flops(schedule) <= share * table.dense:
            return schedule
    return None


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vim_nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--images", type=int)
    parser.add_argument("--blocks", help="where to prune, such as 1,2,3; default: at a quarter, half, three quarters")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--shares", default="0.8,0.7,0.6,0.584,0.5")
    a = parser.parse_args()
    data = open_data(a.data)
    model = open_model(a.model, a.checkpoint, data)
    depth = model.layout.depth
    evaluator = Evaluator(model, data.batches(model.pretrained_cfg, model.img_size, images=a.images))
    table = ssm_models.cost_table(model)
    blocks = [int(b) for b in a.blocks.split(",")] if a.blocks else [depth // 4, depth // 2, 3 * depth // 4]
    shares = [float(share) for share in a.shares.split(",")]
    dense = evaluator.dense
    print(f"{a.model} on {a.data}: dense {100 * dense.top1:.1f} % on {dense.images} images; "
          f"steps after blocks {', '.join(map(str, blocks))}; top-1 in %\n")  # fmt: skip
    print("| | " + " | ".join(f"−{100 * (1 - share):.1f} %" for share in shares) + " |")
    print("| --- |" + " --- |" * len(shares))
    for label, method, patched in rows(model):
        if a.only not in label:
            continue
        cells = []
        for share in shares:
            schedule = at_share(table, blocks, share, method)
            with patched():
                cells.append("–" if schedule is None else f"{100 * evaluator.evaluate(schedule).top1:.1f}")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
