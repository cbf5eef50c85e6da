"""Which tokens are kept, what later blocks see of the others, and the step that decides it.

A schedule's `context` says what becomes of a pruned token. With `drop` and `zeros` the features that travel
through the blocks are those of the kept tokens alone; with `zeros` a convolution over the sequence still sees
the places of the others. With `conv` and `freeze` all features travel and only those of kept tokens are
updated: later blocks see the others as they last were, with `conv` in the local convolution alone, with
`freeze` in convolution and state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.schedule import PruningMethod, kept_tokens
from ssm_models.importance import SCORES, Signals
from ssm_models.scan import alignment

T = TypeVar("T")


@dataclass(frozen=True)
class TokenView:
    """The kept tokens of a batch, each image with its own.

    Attributes:
        length: tokens of the whole sequence, protected ones included.
        seeds: (b,) one whole number an image, for the random score.
        method: the schedule's.
        positions: (b, K) ascending positions of the kept tokens; None while all are.
        held: with the alignment policy `hold`, the gap sums (b, K, D) of each sequence of Δ.
    """

    length: int
    seeds: Tensor
    method: PruningMethod
    positions: Tensor | None = None
    held: tuple[Tensor, ...] = ()
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds of memory, remembered things aside."""
        return (self.seeds, *self.held) if self.positions is None else (self.seeds, self.positions, *self.held)

    def fresh(self) -> "TokenView":
        """Return the same view with nothing remembered."""
        return replace(self)

    def remember(self, name: str, compute: Callable[[], T]) -> T:
        """Return what `compute` gives, computed once a view: what depends on positions serves all blocks."""
        if name not in self._memory:
            self._memory[name] = compute()
        found: T = self._memory[name]
        return found

    @property
    def rows(self) -> Tensor | None:
        """Where the kept tokens (b, K) stand among those that travel; None: these are all that travel."""
        return self.positions if self.method.carries else None

    @property
    def seen(self) -> Tensor | None:
        """Positions (b, K) of the tokens that the state sees, with gaps between them; None: it sees all."""
        return None if self.method.context == "freeze" else self.positions

    @property
    def emit(self) -> Tensor | None:
        """Where the tokens that are updated (b, K) stand among those that are scanned; None: these are all."""
        return self.positions if self.method.context == "freeze" else None

    def all_positions(self) -> Tensor:
        """Return (b, K) positions of the kept tokens, also while all are."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.length, device=self.seeds.device).expand(len(self.seeds), -1)

    def kept(self, x: Tensor) -> Tensor:
        """Return the kept tokens (b, K, D) of those that travel."""
        return x if self.rows is None else take(x, self.rows)

    def spread(self, x: Tensor) -> Tensor:
        """Return those that travel as the whole sequence (b, L, D), with zeros where nothing is left of one."""
        if self.positions is None or self.rows is not None:
            return x
        return x.new_zeros(len(x), self.length, x.shape[2]).scatter(1, _across(self.positions, x), x)

    def in_sequence(self, x: Tensor) -> Tensor:
        """Return those that travel as a convolution over the sequence sees them: (b, K, D), or (b, L, D)."""
        return self.spread(x) if self.method.context == "zeros" else x

    def from_sequence(self, x: Tensor) -> Tensor:
        """Return the tokens that the state sees, (b, S, D), of what `in_sequence` gave."""
        return x if self.method.context == "drop" else self._seen(x)

    def _seen(self, x: Tensor) -> Tensor:
        return x if self.seen is None else take(x, self.seen)

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        """Add `change` (b, K, D) to the kept tokens of those that travel."""
        if self.rows is None:
            return x + change
        return x.scatter_add(1, _across(self.rows, x), change.to(x.dtype))

    def to_grid(self, x: Tensor, height: int, width: int) -> Tensor:
        """Lay those that travel out as (b, D, height, width), with zeros where nothing is left of one.

        In memory the channels come last, as convolutions on the CPU and tensor cores like them.
        """
        return self.spread(x).transpose(1, 2).reshape(len(x), -1, height, width)

    def from_grid(self, grid: Tensor) -> Tensor:
        """Return the tokens that the state sees, (b, S, D), of a grid (b, D, height, width)."""
        return self._seen(grid.flatten(2).transpose(1, 2))

    def overwrite(self, x: Tensor, grid: Tensor) -> Tensor:
        """Give the kept tokens of those that travel the values of a grid (b, D, height, width)."""
        new = grid.flatten(2).transpose(1, 2)
        if self.positions is None:
            return new
        new = take(new, self.positions)
        return new if self.rows is None else x.scatter(1, _across(self.rows, x), new)

    def gap(self, delta: Tensor, delta_bias: Tensor, idle: Tensor, sequence: int, reverse: bool) -> Tensor | None:
        """Return the Σ Δ (b, K, D) of the pruned positions before each kept one, or None if none counts.

        Args:
            delta: (b, K, D) Δ of the kept tokens, before bias and softplus.
            delta_bias: (D,).
            idle: (D,) what a token of zero feature has for `delta + delta_bias`.
            sequence: index of the sequence of Δ, for families with several.
            reverse: whether that sequence is scanned backwards.
        """
        seen = self.seen
        if seen is None or self.method.alignment == "off":
            return None
        if self.method.alignment == "hold":
            return self.held[sequence]
        counts = self.remember(f"skipped {reverse}", lambda: alignment.skipped(seen, self.length, reverse))
        if self.method.alignment == "neighbour":
            return alignment.gap_of_neighbours(counts, F.softplus(delta + delta_bias), reverse)
        return alignment.gap_of_bias(counts, idle)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather the tokens `index` (b, K) of x (b, L, D)."""
    return x.gather(1, _across(index, x))


def _across(index: Tensor, x: Tensor) -> Tensor:
    """Repeat an index (b, K) over the channels of x (b, L, D)."""
    return index[..., None].expand(-1, -1, x.shape[2])


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
        reverse: for each sequence of Δ, whether it is scanned backwards.

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
        deltas = zip(signals.deltas(), before, reverse, strict=True)
        held = tuple(alignment.hold(delta, index, old, flag) for delta, old, flag in deltas)
    kept = replace(view, positions=positions.gather(1, index), held=held)
    return (x if kept.rows is not None else take(x, index)), kept
