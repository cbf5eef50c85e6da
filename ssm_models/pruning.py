"""Which tokens are kept, what later blocks see of the others, and the step that decides it.

A schedule's `context` says what becomes of a pruned token. With `drop` the features that travel
through the blocks are those of the kept tokens alone; with `freeze` all features travel, and only the
kept tokens are updated, so that the rest are seen as they last were by convolution and state.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.schedule import PruningMethod, kept_tokens
from ssm_models.importance import SCORES, Signals
from ssm_models.scan import alignment


@dataclass(frozen=True)
class TokenView:
    """The kept tokens of a batch, each image with its own.

    Attributes:
        length: tokens of the whole sequence, protected ones included.
        seeds: (b,) one whole number an image, for the random score.
        method: the schedule's.
        positions: (b, K) ascending positions of the kept tokens; None while all are.
        held: with the alignment policy `hold`, the gap sums (b, K, D) of each scan direction.
    """

    length: int
    seeds: Tensor
    method: PruningMethod
    positions: Tensor | None = None
    held: tuple[Tensor, ...] = ()

    @property
    def frozen(self) -> bool:
        """Whether the features of pruned tokens travel along, unchanged."""
        return self.positions is not None and self.method.context == "freeze"

    @property
    def emit(self) -> Tensor | None:
        """Positions, among the tokens that travel, that are updated; None: all of them."""
        return self.positions if self.frozen else None

    def all_positions(self) -> Tensor:
        """Return (b, K) positions of the kept tokens, also while all are."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.length, device=self.seeds.device).expand(len(self.seeds), -1)

    def kept(self, x: Tensor) -> Tensor:
        """Return the kept tokens (b, K, D) of the features that travel."""
        return x if self.emit is None else take(x, self.emit)

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        """Add `change` (b, K, D) to the kept tokens of the features that travel."""
        if self.emit is None:
            return x + change
        return x.scatter_add(1, self.emit[..., None].expand(-1, -1, x.shape[2]), change.to(x.dtype))

    def gap(self, delta: Tensor, delta_bias: Tensor, direction: int, reverse: bool) -> Tensor | None:
        """Return the Σ Δ (b, K, D) of the pruned positions before each kept one, or None if none counts.

        Args:
            delta: (b, K, D) the raw Δ of the kept tokens, before bias and softplus.
            delta_bias: (D,).
            direction: index of the scan direction.
            reverse: whether that direction runs backwards.
        """
        if self.positions is None or self.frozen or self.method.alignment == "off":
            return None
        if self.method.alignment == "hold":
            return self.held[direction]
        counts = alignment.skipped(self.positions, self.length, reverse)
        if self.method.alignment == "neighbour":
            return alignment.gap_of_neighbours(counts, F.softplus(delta + delta_bias), reverse)
        return alignment.gap_of_bias(counts, delta_bias)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather the tokens `index` (b, K) of x (b, L, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def prune(
    x: Tensor, view: TokenView, signals: Signals, keep: float, protected: tuple[int, ...], reverse: tuple[bool, ...]
) -> tuple[Tensor, TokenView]:
    """Keep the most important share of the current patch tokens.

    Args:
        x: (b, L, D) the features that travel, already updated by the block that gave `signals`.
        view: the tokens kept so far.
        signals: what the block before the step saw.
        keep: share in (0, 1] of the patch tokens kept so far.
        protected: positions that always stay.
        reverse: for each scan direction, whether it runs backwards.

    Returns:
        The features that travel on, and the view of what is kept. Ties go to the earlier token.
    """
    positions = signals.positions
    scores = SCORES[view.method.importance](signals)
    for position in protected:
        scores = scores.masked_fill(positions == position, torch.inf)
    count = kept_tokens(int(positions.shape[1]) - len(protected), keep) + len(protected)
    index = scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    held = view.held
    if view.method.alignment == "hold":
        before = held or (None,) * len(reverse)
        deltas = zip(signals.deltas, before, reverse, strict=True)
        held = tuple(alignment.hold(delta, index, old, flag) for delta, old, flag in deltas)
    kept = replace(view, positions=positions.gather(1, index), held=held)
    return (x if kept.frozen else take(x, index)), kept
