"""The view through which blocks see the tokens of a batch: what travels, what the state scans, what is kept.

A block asks the view and never the context of the schedule: it takes tokens out of the features that travel, puts
them back, lays them out on the grid or along a scan path, and asks for the gaps between them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.schedule import PruningMethod
from ssm_models.gather import add, put, take_if
from ssm_models.scan import alignment
from ssm_models.scan_paths import Direction, ScanPath
from ssm_models.token_sets import TokenSets

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TokenView:
    """The tokens of a batch before a block; each image has its own.

    Shapes: b images; L tokens in the whole sequence, of which T travel, S are scanned and K are kept; D channels.

    Attributes:
        sets: which tokens travel, are scanned and are kept.
        seeds: (b,) one integer per image, for the random score.
        method: the schedule's.
        gap_sums: with the alignment policy `hold`, the sum of Δ in each gap, (b, S, D), for each sequence of Δ.
        merged_sizes: (b, K) with merging, how many tokens each kept one stands for; None: one each.
        grid: (height, width) of the whole sequence without protected tokens.
        returning: whether pruned tokens come back at the end of the stage.
        last_features: (b, L, D) in a model with stages, once fewer than L tokens travel: what `whole` gives for those
            that no longer do. Set when the first tokens stop travelling.
        aside: whole grids (b, L', D') of earlier stages that a later one asks for.
    """

    sets: TokenSets
    seeds: Tensor
    method: PruningMethod
    gap_sums: tuple[Tensor, ...] = ()
    merged_sizes: Tensor | None = None
    grid: tuple[int, int] = (0, 0)
    returning: bool = False
    last_features: Tensor | None = None
    aside: tuple[Tensor, ...] = ()
    _memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the view holds, without those that can be computed again."""
        optional = (self.merged_sizes, self.last_features)
        return (
            self.seeds,
            *self.sets.tensors,
            *self.gap_sums,
            *self.aside,
            *(tensor for tensor in optional if tensor is not None),
        )

    def of(self, method: PruningMethod) -> "TokenView":
        """Return the same view for another schedule's method, with nothing remembered."""
        return replace(self, method=method, sets=self.sets.without_cache())

    def remember(self, name: str, compute: Callable[[], T]) -> T:
        """Return what `compute` gives, computed once per view: what depends on positions serves all blocks."""
        if name not in self._memory:
            self._memory[name] = compute()
        found: T = self._memory[name]
        return found

    def all_positions(self) -> Tensor:
        """Return the positions (b, K) of the kept tokens, also while all are kept."""
        if self.sets.kept_positions is not None:
            return self.sets.kept_positions
        return torch.arange(self.sets.length, device=self.seeds.device).expand(self.seeds.shape[0], -1)

    def kept(self, x: Tensor) -> Tensor:
        """Return the kept tokens (b, K, D) of those that travel."""
        return take_if(x, self.sets.kept_in_travelling)

    def scanned(self, x: Tensor) -> Tensor:
        """Return the scanned tokens (b, S, D) of those that travel."""
        return take_if(x, self.sets.scanned_idx)

    def kept_of_scanned(self, x: Tensor) -> Tensor:
        """Return the kept tokens (b, K, D) of those that are scanned."""
        return take_if(x, self.sets.kept_idx)

    def whole(self, x: Tensor) -> Tensor:
        """Return the whole sequence (b, L, D): travelling tokens as they are, the others with their last feature."""
        if self.sets.travelling_idx is None:
            return x
        assert self.last_features is not None
        return put(self.last_features, self.sets.travelling_idx, x)

    def with_last_features(self, last_features: Tensor) -> "TokenView":
        """Return the same view, including what it remembers, with other features of the tokens that are gone."""
        view = replace(self, last_features=last_features)
        view._memory.update(self._memory)
        return view

    def scan_path(self, direction: Direction) -> ScanPath:
        """Return the order in which a scan visits the scanned tokens."""

        def laid_out() -> ScanPath:
            sets = self.sets
            return ScanPath.of(direction.path, self.grid, sets.scanned_positions, sets.kept_idx, self.seeds.device)

        return self.remember(f"scan path {direction.path}", laid_out)

    def zero_filled(self, x: Tensor) -> Tensor:
        """Return the whole sequence (b, L, D): travelling tokens as they are, zeros for the others."""
        if self.sets.travelling_idx is None:
            return x
        return put(x.new_zeros(x.shape[0], self.sets.length, x.shape[2]), self.sets.travelling_idx, x)

    def in_sequence(self, x: Tensor) -> Tensor:
        """Return what a convolution over the sequence reads: the travelling tokens (b, T, D).

        With the context `zeros` it reads the whole sequence (b, L, D), with zeros for those that are gone.
        """
        return self.zero_filled(x) if self.method.context == "zeros" else x

    def from_sequence(self, x: Tensor) -> Tensor:
        """Return the scanned tokens (b, S, D) of what `in_sequence` gave."""
        return take_if(x, self.sets.scanned_positions) if self.method.context == "zeros" else self.scanned(x)

    def update(self, x: Tensor, change: Tensor) -> Tensor:
        """Return the travelling tokens x (b, T, D) with `change` (b, K, D) added to the kept ones."""
        if self.sets.kept_in_travelling is None:
            return x + change
        return add(x, self.sets.kept_in_travelling, change.to(x.dtype))

    def renew(self, x: Tensor, values: Tensor) -> Tensor:
        """Return the travelling tokens x (b, T, D) with `values` (b, K, D) for the kept ones."""
        return self.update(x, values - self.kept(x))

    def to_grid(self, x: Tensor, height: int, width: int) -> Tensor:
        """Lay the travelling tokens out as (b, D, height, width), with zeros for those that are gone.

        The memory format is channels-last, which convolutions prefer on CPUs and tensor cores.
        """
        return self.zero_filled(x).transpose(1, 2).reshape(x.shape[0], -1, height, width)

    def from_grid(self, grid: Tensor) -> Tensor:
        """Return the scanned tokens (b, S, D) of a grid (b, D, height, width)."""
        return take_if(grid.flatten(2).transpose(1, 2), self.sets.scanned_positions)

    def overwrite(self, x: Tensor, grid: Tensor) -> Tensor:
        """Return the travelling tokens x (b, T, D) with the values of a grid (b, D, H, W) for the kept ones."""
        values, index = (
            take_if(grid.flatten(2).transpose(1, 2), self.sets.kept_positions),
            self.sets.kept_in_travelling,
        )
        return values if index is None else put(x, index, values)

    def gap(
        self, delta: Tensor, delta_bias: Tensor, idle: Tensor, sequence: int, direction: Direction
    ) -> Tensor | None:
        """Return the sum of Δ (b, S, D) in the gap before each scanned token; None if there are no gaps.

        Args:
            delta: (b, S, D) Δ of the scanned tokens, before bias and softplus, in the order of the scan path.
            delta_bias: (D,).
            idle: (D,) what a token whose features are zero has for `delta + delta_bias`.
            sequence: index of the sequence of Δ, for families with several.
            direction: in which that sequence is scanned.
        """
        if self.sets.scanned_positions is None or self.method.alignment == "off":
            return None
        if self.method.alignment == "hold":
            return self.gap_sums[sequence]
        positions, reverse = self.scan_path(direction).positions, direction.reverse
        assert positions is not None
        length = self.sets.length
        counts = self.remember(f"skipped {direction}", lambda: alignment.skipped(positions, length, reverse))
        if self.method.alignment == "neighbour":
            return alignment.gap_of_neighbours(counts, F.softplus(delta + delta_bias), reverse)
        return alignment.gap_of_bias(counts, idle)
