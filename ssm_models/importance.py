"""Token importance: which patch tokens a pruning step keeps.

A score is a function from `Signals`, which the block before the step returns, to a (b, K) tensor. The tokens with the
highest scores are kept. `SCORES` has them by the names that schedules use. Sums are taken in float32 or wider: in
half precision they would overflow, and the overflowed scores would tie.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_models.precision import precise


@dataclass(frozen=True)
class Signals:
    """What a block computed for its K kept tokens.

    Attributes:
        y: (b, K, D) output of the state-space model, gated, directions added, in raster order.
        deltas: returns Δ (b, K, D) after the softplus for each sequence of Δ: each scan direction, unless several
            share one. Called only where Δ is needed.
        positions: (b, K) positions of the tokens in the whole sequence.
        seeds: (b,) one integer per image, independent of its batch.
        outputs: (b, K, D) of each scan direction, which add up to `y`; empty where a family has only the sum.
    """

    y: Tensor
    deltas: Callable[[], tuple[Tensor, ...]]
    positions: Tensor
    seeds: Tensor
    outputs: tuple[Tensor, ...] = ()


def clip(signals: Signals) -> Tensor:
    """Σ_d max(0, y_d): the score of arXiv:2409.18962 (its division by D changes no rank)."""
    return precise(signals.y).clamp(min=0).sum(-1)


def l1(signals: Signals) -> Tensor:
    """Σ_d |y_d|."""
    return precise(signals.y).abs().sum(-1)


def l2(signals: Signals) -> Tensor:
    """Σ_d y_d², which ranks as the ℓ2 norm does."""
    return precise(signals.y).square().sum(-1)


def unclipped(signals: Signals) -> Tensor:
    """Σ_d y_d."""
    return precise(signals.y).sum(-1)


def forward(signals: Signals) -> Tensor:
    """Σ_d max(0, y_d) of the first scan direction's output alone."""
    return precise(signals.outputs[0]).clamp(min=0).sum(-1)


def backward(signals: Signals) -> Tensor:
    """Σ_d max(0, y_d) of the last scan direction's output alone, as the code released with the paper has it."""
    return precise(signals.outputs[-1]).clamp(min=0).sum(-1)


def mean_delta(signals: Signals) -> Tensor:
    """The sum of Δ over channels and directions, which ranks as their mean does (MTR, MaMe)."""
    first, *others = (precise(delta).sum(-1) for delta in signals.deltas())
    return sum(others, first)


def random(signals: Signals) -> Tensor:
    """A hash of image and position: uniform, and the same in every run and batch."""
    h = signals.seeds[:, None] ^ (signals.positions * 0x9E3779B1)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):  # the finaliser of MurmurHash3, on 31 bits
        h = ((h ^ (h >> 15)) * multiplier) & 0x7FFFFFFF
    return (h ^ (h >> 13)).to(torch.float32)


SCORES: dict[str, Callable[[Signals], Tensor]] = {
    "clip": clip,
    "l1": l1,
    "l2": l2,
    "sum": unclipped,
    "forward": forward,
    "backward": backward,
    "delta": mean_delta,
    "random": random,
}


def image_seeds(images: Tensor) -> Tensor:
    """Return integers (b,) in [0, 2³¹) that depend only on the pixels of each image (b, c, H, W)."""
    pixels = (images.detach().flatten(1).to(torch.float32) * 4096).round().to(torch.int64)
    weights = torch.arange(1, pixels.shape[1] + 1, device=images.device)
    return (pixels * weights).sum(1) & 0x7FFFFFFF
