"""Which tokens are kept, what later blocks see of the others, and the step that decides it.

Of the whole sequence some tokens travel through the blocks, the state scans some of these, and some of these are
kept: the kept are updated. A step takes the tokens that it prunes out of these nested sets, its context says how far:
with `freeze` they are no longer kept, so that later blocks see them, as they last were, in convolution and state;
with `conv` they are not scanned either and feed the local convolution alone; with `drop` and `zeros` nothing of them
travels. With `zeros` a convolution over the sequence still sees the places of those gone. Steps may differ
in their contexts, so that in one view kept, frozen, convolved and gone tokens stand side by side.

In a model with stages all tokens come back at the end of a stage with the value they last had. So the first step
after which fewer travel sets the features of the whole grid aside, once, and later ones write into a copy of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces import PruningStep
from spaces.schedule import PruningMethod, kept_tokens
from ssm_models.importance import SCORES, Signals
from ssm_models.precision import precise
from ssm_models.gather import add, put, take
from ssm_models.scan import alignment
from ssm_models.scan_paths import Direction, Way

T = TypeVar("T")

# How many of the sets a pruned token leaves: the kept, the scanned, those that travel.
SETS_LEFT = {"freeze": 1, "conv": 2, "drop": 3, "zeros": 3}


@dataclass(frozen=True)
class TokenView:
    """The tokens of a batch, each image with its own: which travel, which are scanned, which are kept.

    Each set stands inside the one before it, as the ascending places of its tokens there; None means all of them. So
    only a set that is smaller than the one around it is ever gathered.

    Attributes:
        length: tokens of the whole sequence, protected ones included.
        seeds: (b,) one whole number an image, for the random score.
        method: the schedule's.
        travelling: (b, T) positions, in the whole sequence, of the tokens whose features travel through the blocks.
        scanned: (b, S) places, among those that travel, of the tokens that the state sees.
        emit: (b, K) places, among those that are scanned, of the kept tokens: these give an output.
        held: with the alignment policy `hold`, the gap sums (b, S, D) of each sequence of Δ.
        sizes: with merging, how many tokens each kept one stands for, (b, K); None: one each.
        grid: (height, width) of the tokens.
        returning: whether tokens that are gone come back at the end of the stage.
        left: (b, L, D) then, once fewer than all travel, the features of the whole sequence as they were set aside:
            those of the tokens gone are their last.
        aside: whole grids (b, L', D') of earlier stages that a later one asks for.
    """

    length: int
    seeds: Tensor
    method: PruningMethod
    travelling: Tensor | None = None
    scanned: Tensor | None = None
    emit: Tensor | None = None
    held: tuple[Tensor, ...] = ()
    sizes: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    returning: bool = False
    left: Tensor | None = None
    aside: tuple[Tensor, ...] = ()
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds of memory, remembered things aside."""
        optional = (self.travelling, self.scanned, self.emit, self.sizes, self.left)
        return (self.seeds, *self.held, *self.aside, *(tensor for tensor in optional if tensor is not None))

    def of(self, method: PruningMethod) -> "TokenView":
        """Return the same view for another schedule's method, with nothing remembered."""
        return replace(self, method=method)

    def remember(self, name: str, compute: Callable[[], T]) -> T:
        """Return what `compute` gives, computed once a view: what depends on positions serves all blocks."""
        if name not in self._memory:
            self._memory[name] = compute()
        found: T = self._memory[name]
        return found

    @property
    def rows(self) -> Tensor | None:
        """Where the kept tokens (b, K) stand among those that travel; None: these are all that travel."""
        return self.remember("rows", lambda: _within(self.scanned, self.emit))

    @property
    def seen(self) -> Tensor | None:
        """Positions (b, S) of the tokens that the state sees, with gaps between them; None: it sees all."""
        return self.remember("seen", lambda: _within(self.travelling, self.scanned))

    @property
    def positions(self) -> Tensor | None:
        """Ascending positions (b, K) of the kept tokens; None: all are kept."""
        return self.remember("positions", lambda: _within(self.travelling, self.rows))

    def all_positions(self) -> Tensor:
        """Return (b, K) positions of the kept tokens, also while all are."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.length, device=self.seeds.device).expand(self.seeds.shape[0], -1)

    def kept(self, x: Tensor) -> Tensor:
        """Return the kept tokens (b, K, D) of those that travel."""
        return _some(x, self.rows)

    def visible(self, x: Tensor) -> Tensor:
        """Return the tokens that the state sees (b, S, D) of those that travel."""
        return _some(x, self.scanned)

    def whole(self, x: Tensor) -> Tensor:
        """Return the whole sequence (b, L, D): those that travel as they are, those gone as they last were."""
        if self.travelling is None:
            return x
        assert self.left is not None
        return put(self.left, self.travelling, x)

    def leaving(self, left: Tensor) -> "TokenView":
        """Return the same view, what it remembers included, with other features of the tokens gone."""
        view = replace(self, left=left)
        view._memory.update(self._memory)
        return view

    def way(self, direction: Direction) -> Way:
        """Return the order in which a scan visits the tokens that the state sees."""

        def laid() -> Way:
            return Way.of(direction.path, self.grid, self.seen, self.emit, self.seeds.device)

        return self.remember(f"way {direction.path}", laid)

    def spread(self, x: Tensor) -> Tensor:
        """Return those that travel as the whole sequence (b, L, D), with zeros where nothing is left of one."""
        if self.travelling is None:
            return x
        return put(x.new_zeros(x.shape[0], self.length, x.shape[2]), self.travelling, x)

    def in_sequence(self, x: Tensor) -> Tensor:
        """Return those that travel as a convolution over the sequence sees them: (b, T, D), or (b, L, D)."""
        return self.spread(x) if self.method.context == "zeros" else x

    def from_sequence(self, x: Tensor) -> Tensor:
        """Return the tokens that the state sees, (b, S, D), of what `in_sequence` gave."""
        return _some(x, self.seen) if self.method.context == "zeros" else self.visible(x)

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        """Add `change` (b, K, D) to the kept tokens of those that travel."""
        if self.rows is None:
            return x + change
        return add(x, self.rows, change.to(x.dtype))

    def renew(self, x: Tensor, values: Tensor) -> Tensor:
        """Give the kept tokens of those that travel the values (b, K, D)."""
        return self.update(x, values - self.kept(x))

    def to_grid(self, x: Tensor, height: int, width: int) -> Tensor:
        """Lay those that travel out as (b, D, height, width), with zeros where nothing is left of one.

        In memory the channels come last, as convolutions on the CPU and tensor cores like them.
        """
        return self.spread(x).transpose(1, 2).reshape(x.shape[0], -1, height, width)

    def from_grid(self, grid: Tensor) -> Tensor:
        """Return the tokens that the state sees, (b, S, D), of a grid (b, D, height, width)."""
        return _some(grid.flatten(2).transpose(1, 2), self.seen)

    def overwrite(self, x: Tensor, grid: Tensor) -> Tensor:
        """Give the kept tokens of those that travel the values of a grid (b, D, height, width)."""
        new = _some(grid.flatten(2).transpose(1, 2), self.positions)
        return new if self.rows is None else put(x, self.rows, new)

    def gap(
        self, delta: Tensor, delta_bias: Tensor, idle: Tensor, sequence: int, direction: Direction
    ) -> Tensor | None:
        """Return the Σ Δ (b, S, D) of the positions passed over before each seen one, or None if none counts.

        Args:
            delta: (b, S, D) Δ of the tokens that the state sees, before bias and softplus, in the order of the way.
            delta_bias: (D,).
            idle: (D,) what a token of zero feature has for `delta + delta_bias`.
            sequence: index of the sequence of Δ, for families with several.
            direction: in which that sequence is scanned.
        """
        if self.seen is None or self.method.alignment == "off":
            return None
        if self.method.alignment == "hold":
            return self.held[sequence]
        seen, reverse = self.way(direction).seen, direction.reverse
        assert seen is not None
        counts = self.remember(f"skipped {direction}", lambda: alignment.skipped(seen, self.length, reverse))
        if self.method.alignment == "neighbour":
            return alignment.gap_of_neighbours(counts, F.softplus(delta + delta_bias), reverse)
        return alignment.gap_of_bias(counts, idle)

    def without(self, stays: Tensor, gone: Tensor, sets: int) -> tuple["TokenView", Tensor | None, Tensor | None]:
        """Take kept tokens out of the innermost `sets` of the kept, the scanned and those that travel.

        Args:
            stays: (b, k) ascending places among the kept of those that stay.
            gone: (b, K - k) places among the kept of the others.
            sets: 1, 2 or 3.

        Returns:
            The view; the ascending places, among those scanned before, of those that stay scanned; and among those
            that travelled, of those that travel on. None where all do. `held` and `sizes` are as they were.
        """
        around = [_count(self.seen, self.length), _count(self.travelling, self.length), self.length]
        chain = [self.emit, self.scanned, self.travelling]
        left: list[Tensor | None] = [None, None]
        for depth in range(sets):
            inner = chain[depth]
            if inner is not None:
                stays, gone = inner.gather(1, stays), inner.gather(1, gone)  # places in the set around
            if depth + 1 == sets:
                chain[depth] = stays
                break
            if inner is not None:  # others stay in the set around too, and all that stay there move up
                flags = stays.new_ones(stays.shape[0], around[depth]).scatter(1, gone, 0)
                order = flags.argsort(dim=1, descending=True, stable=True)
                chain[depth] = order.argsort(dim=1).gather(1, stays)
                stays = order[:, : around[depth] - gone.shape[1]]
            left[depth] = stays
        emit, scanned, travelling = chain
        return replace(self, travelling=travelling, scanned=scanned, emit=emit), left[0], left[1]


def _some(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else take(x, index)


def _within(outer: Tensor | None, inner: Tensor | None) -> Tensor | None:
    """Return the places of the tokens `inner` of those at `outer`; None is all."""
    if outer is None or inner is None:
        return inner if outer is None else outer
    return outer.gather(1, inner)


def _count(index: Tensor | None, otherwise: int) -> int:
    return otherwise if index is None else int(index.shape[1])


def prune(
    x: Tensor,
    view: TokenView,
    signals: Signals,
    step: PruningStep,
    protected: tuple[int, ...],
    directions: tuple[Direction, ...],
) -> tuple[Tensor, TokenView]:
    """Keep the most important share of the current patch tokens.

    Args:
        x: (b, T, D) the features that travel, already updated by the block that gave `signals`.
        view: the tokens kept so far.
        signals: what the block before the step saw.
        step: the share of the patch tokens kept so far that stays, and the context of the others.
        protected: positions that always stay.
        directions: in which each sequence of Δ is scanned.

    Returns:
        The features that travel on, and the view of what is kept. Ties go to the earlier token.
    """
    positions = signals.positions
    taboo = torch.zeros_like(positions, dtype=torch.bool)
    for position in protected:
        taboo = taboo | (positions == position)
    scores = SCORES[view.method.importance](signals).masked_fill(taboo, torch.inf)
    count = kept_tokens(int(positions.shape[1]) - len(protected), step.keep) + len(protected)
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    stays, gone = ranked[:, :count].sort(dim=1).values, ranked[:, count:]
    after, scanned, travelling = view.without(stays, gone, SETS_LEFT[step.context or view.method.context])
    if view.method.alignment == "hold" and scanned is not None:
        before = view.held or (None,) * len(directions)
        deltas = zip(signals.deltas(), before, directions, strict=True)
        after = replace(after, held=tuple(_held(view, delta, scanned, old, way) for delta, old, way in deltas))
    if view.returning and travelling is not None:
        after = replace(after, left=view.whole(x))
    onwards = _some(x, travelling)
    if view.method.reduction == "prune":
        return onwards, after
    sizes = precise(x.new_ones(positions.shape)) if view.sizes is None else view.sizes
    change, sizes = merge(view.kept(x), sizes, stays, gone, taboo)
    return after.update(onwards, change), replace(after, sizes=sizes)


def merge(x: Tensor, sizes: Tensor, stays: Tensor, gone: Tensor, taboo: Tensor) -> tuple[Tensor, Tensor]:
    """Average each token that goes into the one that stays whose feature is most similar by cosine.

    The matching of ToMe (arXiv:2210.09461), on the features and between the two sets that a score has chosen.

    Args:
        x: (b, K, D) features.
        sizes: (b, K) how many tokens each stands for: its weight in the average.
        stays: (b, k) places of the tokens that stay.
        gone: (b, K - k) places of the others.
        taboo: (b, K) whether a token takes nothing in; of those that stay, at least one does.

    Returns:
        What is to be added to those that stay, (b, k, D), zero where nothing was merged, and how many tokens
        they then stand for, (b, k).
    """
    unit = F.normalize(x, dim=-1)
    alike = take(unit, gone) @ take(unit, stays).transpose(1, 2)
    goal = alike.masked_fill(taboo.gather(1, stays)[:, None], -torch.inf).argmax(2)
    weights = sizes.gather(1, gone)
    sizes = sizes.gather(1, stays).scatter_add(1, goal, weights)
    share = weights / sizes.gather(1, goal)
    here = take(x, stays)
    pull = (take(x, gone) - take(here, goal)) * share[..., None]
    return add(torch.zeros_like(here, dtype=pull.dtype), goal, pull).to(x.dtype), sizes


def _held(view: TokenView, delta: Tensor, scanned: Tensor, old: Tensor | None, direction: Direction) -> Tensor:
    """Return the gap sums (b, S, D) of those that stay scanned, in the order of their way."""
    way = view.way(direction)
    return alignment.hold(way.arrange(_among_scanned(view, delta)), way.places(scanned), old, direction.reverse)


def _among_scanned(view: TokenView, delta: Tensor) -> Tensor:
    """Return Δ of the kept tokens (b, K, D) at their places among those scanned, (b, S, D); elsewhere zeros."""
    if view.emit is None:
        return delta
    scanned = _count(view.seen, view.length)
    return put(delta.new_zeros(delta.shape[0], scanned, delta.shape[2]), view.emit, delta)
