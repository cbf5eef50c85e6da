"""The ways that scans take over a grid of tokens: along its rows, columns or diagonals, forwards or backwards.

Tokens are kept in raster order, along the rows. A way along another path is a permutation of them; a way backwards is
a flag of the scan. What is pruned leaves gaps of its own on each way: two tokens that are neighbours in a row are a
whole column apart on the other way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssm_models.gather import take

RASTER = "rows"

# The order of each path over a grid: row and column of a token, of which the line comes first, then the place on it.
PATHS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    RASTER: lambda row, column: (row, column),
    "columns": lambda row, column: (column, row),
    "columns from the right": lambda row, column: (-column, row),
    "diagonals": lambda row, column: (row - column, row),
    "antidiagonals": lambda row, column: (-row - column, row),
}


class Direction(NamedTuple):
    """How one scan visits the tokens: backwards or not, and along which of `PATHS`."""

    reverse: bool = False
    path: str = RASTER

    @property
    def columns(self) -> bool:
        """Whether it goes column by column, from the left."""
        return self.path == "columns"


FORWARD, BACKWARD = Direction(), Direction(reverse=True)
COLUMNS, COLUMNS_BACK = Direction(path="columns"), Direction(reverse=True, path="columns")
CROSS = (FORWARD, COLUMNS, BACKWARD, COLUMNS_BACK)  # the cross-scan of VMamba (arXiv:2401.10166), in its order


def path_order(path: str, grid: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return the positions (H · W,), in raster order, that a path of `PATHS` visits one after the other."""
    height, width = grid
    positions = torch.arange(height * width, device=device)
    line, place = PATHS[path](positions // width, positions % width)
    reach = height + width  # of a line's number either way, so that the keys are in order and no two alike
    return ((line + reach) * reach + place).argsort()


@dataclass(frozen=True)
class Way:
    """The tokens that a state sees, in the order of a way over the grid; None stands for raster order or for all.

    Attributes:
        order: (S,) or (b, S) for each place on the way the token's place in raster order, among those seen.
        emit: (b, K) ascending places on the way of the tokens that give an output.
        back: (K,) or (b, K) for each of these tokens in raster order its place among them on the way.
        seen: (b, S) ascending positions on the way over the whole grid; None: the state sees all.
    """

    order: Tensor | None
    emit: Tensor | None
    back: Tensor | None
    seen: Tensor | None

    @classmethod
    def of(
        cls,
        path: str,
        grid: tuple[int, int],
        seen: Tensor | None,
        emit: Tensor | None,
        device: torch.device,
    ) -> "Way":
        """Return the way, from the positions seen (b, S) and the places among them that emit (b, K), in raster order.

        Args:
            path: one of `PATHS`.
            grid: (height, width) of the whole grid.
            seen, emit: as in the attributes, but in raster order; None is all.
        """
        if path == RASTER:
            return cls(None, emit, None, seen)
        order = path_order(path, grid, device)
        rank = order.argsort()
        on_way = None
        if seen is not None:
            on_way, order = rank[seen].sort(1)
            rank = order.argsort(1)
        if emit is None:
            return cls(order, None, rank, on_way)
        places = rank[emit] if seen is None else rank.gather(1, emit)
        emitted, back = places.sort(1)
        return cls(order, emitted, back.argsort(1), on_way)

    def arrange(self, x: Tensor) -> Tensor:
        """Put what the state sees (b, S, D) from raster order into that of the way."""
        return _permuted(x, self.order)

    def restore(self, y: Tensor) -> Tensor:
        """Put outputs (b, K, D) from the order of the way into raster order."""
        return _permuted(y, self.back)

    def emitting(self, x: Tensor) -> Tensor:
        """Return those that give an output, (b, K, D), of what the state sees in the order of the way."""
        return x if self.emit is None else _permuted(x, self.emit)

    def places(self, stays: Tensor) -> Tensor:
        """Return the ascending places on the way of some tokens (b, k), given by their places in raster order."""
        if self.order is None:
            return stays
        if self.order.dim() == 1:
            return self.order.argsort()[stays].sort(1).values
        return self.order.argsort(1).gather(1, stays).sort(1).values


def _permuted(x: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return x
    if order.dim() == 1:
        return x.index_select(1, order)
    return take(x, order)
