"""The paths that scans take over a grid of tokens: along its rows, columns or diagonals, forwards or backwards.

Tokens are stored in raster order, row by row. Another path is a permutation of them; backwards is a flag of the scan.
Pruned tokens leave different gaps on each path: two neighbours in a row are a whole column apart when scanned by
columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssm_models.gather import take

RASTER = "rows"

# The sort key of each path, from the row and the column of a token: its line, then its place on that line.
PATHS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    RASTER: lambda row, column: (row, column),
    "columns": lambda row, column: (column, row),
    "columns from the right": lambda row, column: (-column, row),
    "diagonals": lambda row, column: (row - column, row),
    "antidiagonals": lambda row, column: (-row - column, row),
}


class Direction(NamedTuple):
    """How a scan visits the tokens: along which of `PATHS`, and whether backwards."""

    reverse: bool = False
    path: str = RASTER

    @property
    def columns(self) -> bool:
        """Whether it runs column by column, from the left."""
        return self.path == "columns"


FORWARD, BACKWARD = Direction(), Direction(reverse=True)
COLUMNS, COLUMNS_BACK = Direction(path="columns"), Direction(reverse=True, path="columns")
CROSS = (FORWARD, COLUMNS, BACKWARD, COLUMNS_BACK)  # the cross-scan of VMamba (arXiv:2401.10166), in its order


def path_order(path: str, grid: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return the raster positions (H · W,) of a grid (H, W) in the order in which a path of `PATHS` visits them.

    >>> path_order("columns", (2, 3)).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    height, width = grid
    positions = torch.arange(height * width, device=device)
    line, place = PATHS[path](positions // width, positions % width)
    reach = height + width  # bounds both parts of the key, so that keys are distinct and sort by line first
    return ((line + reach) * reach + place).argsort()


@dataclass(frozen=True, eq=False)
class ScanPath:
    """The scanned tokens in the order of a path over the grid.

    S tokens are scanned, K of them kept (`token_sets`). "Rank" is a place in the order of the path among the scanned
    tokens. None stands for raster order in `order` and `back`, and for all tokens in the others.

    Attributes:
        order: (S,) or (b, S) for each rank, the token's place among the scanned ones in raster order.
        kept_ranks: (b, K) ascending ranks of the kept tokens: these give an output.
        back: (K,) or (b, K) for each kept token in raster order, its place among the kept ones on the path.
        positions: (b, S) ascending positions of the scanned tokens on the path over the whole grid.
    """

    order: Tensor | None
    kept_ranks: Tensor | None
    back: Tensor | None
    positions: Tensor | None

    @classmethod
    def of(
        cls,
        path: str,
        grid: tuple[int, int],
        scanned_positions: Tensor | None,
        kept_idx: Tensor | None,
        device: torch.device,
    ) -> "ScanPath":
        """Return the path over the scanned tokens, all given in raster order.

        Args:
            path: one of `PATHS`.
            grid: (height, width) of the whole grid.
            scanned_positions: (b, S) positions of the scanned tokens; None: all.
            kept_idx: (b, K) places of the kept tokens among the scanned ones; None: all.
            device: of the result.
        """
        if path == RASTER:
            return cls(None, kept_idx, None, scanned_positions)
        order = path_order(path, grid, device)
        rank = order.argsort()
        positions = None
        if scanned_positions is not None:
            positions, order = rank[scanned_positions].sort(1)
            rank = order.argsort(1)
        if kept_idx is None:
            return cls(order, None, rank, positions)
        ranks = rank[kept_idx] if scanned_positions is None else rank.gather(1, kept_idx)
        kept_ranks, back = ranks.sort(1)
        return cls(order, kept_ranks, back.argsort(1), positions)

    def arrange(self, x: Tensor) -> Tensor:
        """Put the scanned tokens (b, S, D) from raster order into the order of the path."""
        return _permuted(x, self.order)

    def restore(self, y: Tensor) -> Tensor:
        """Put outputs of the kept tokens (b, K, D) from the order of the path into raster order."""
        return _permuted(y, self.back)

    def kept(self, x: Tensor) -> Tensor:
        """Return the kept tokens (b, K, D) of the scanned ones (b, S, D), both in the order of the path."""
        return _permuted(x, self.kept_ranks)

    def ranks(self, scanned_idx: Tensor) -> Tensor:
        """Return the ascending ranks (b, k) of tokens given by their places among the scanned ones."""
        if self.order is None:
            return scanned_idx
        if self.order.dim() == 1:
            return self.order.argsort()[scanned_idx].sort(1).values
        return self.order.argsort(1).gather(1, scanned_idx).sort(1).values


def _permuted(x: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return x
    if order.dim() == 1:
        return x.index_select(1, order)
    return take(x, order)
