"""Tokens of a batch by their places: taken, put back and added to, as rows of one table.

On a CPU to copy rows of b · L takes a fifth of the time of a gather, which has an index for every channel, and
half with its gradient (benchmarks/rows.py).
"""

import torch
from torch import Tensor


def rows(index: Tensor, length: int) -> Tensor:
    """Return where the places `index` (b, K) of b sequences of `length` stand in the table of all: (b · K,)."""
    starts = torch.arange(index.shape[0], device=index.device) * length
    return (index + starts[:, None]).flatten()


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens at `index` (b, K) of x (b, L, D): (b, K, D)."""
    return x.flatten(0, 1).index_select(0, rows(index, x.shape[1])).view(*index.shape, x.shape[2])


def put(x: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """Return x (b, L, D) with `tokens` (b, K, D) at `index` (b, K)."""
    return x.flatten(0, 1).index_copy(0, rows(index, x.shape[1]), tokens.flatten(0, 1)).view(x.shape)


def add(x: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """Return x (b, L, D) with `tokens` (b, K, D) added at `index` (b, K), where a place may stand more than once."""
    return x.flatten(0, 1).index_add(0, rows(index, x.shape[1]), tokens.flatten(0, 1)).view(x.shape)
