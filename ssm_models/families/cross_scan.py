"""One direction of a selective scan over a grid whose tokens may be pruned; families add up several of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.precision import precise
from ssm_models.pruning import TokenView
from ssm_models.scan import channel_last_scan
from ssm_models.scan_paths import Direction


def directional_scan(
    u: Tensor,
    view: TokenView,
    sequence: int,
    direction: Direction,
    rank: int,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Scan what the state sees along one way over the grid, with Δ, B and C from the token that is visited.

    Args:
        u: (b, S, D) of the tokens that the state sees, in the order of the way (`view.way(direction).arrange`).
        view: the tokens.
        sequence: index of this direction among those of the model.
        direction: the way, and whether it is scanned backwards.
        rank: rows of `x_proj` that Δ comes from; the rest are those of B and then of C.
        x_proj: (rank + 2 N, D).
        dt_proj: (D, rank).
        dt_bias, D: (D,); the bias counts once.
        A_log: (D, N).

    Returns:
        The output (b, K, D) of the kept tokens in raster order, without a gate, and what gives their Δ (b, K, D)
        after the softplus.
    """
    way, states = view.way(direction), A_log.shape[1]
    if way.emit is None:
        dt, B, C = torch.split(F.linear(u, x_proj), [rank, states, states], -1)
    else:  # a pruned token gives no output, so it needs no C
        dt, B = torch.split(F.linear(u, x_proj[:-states]), [rank, states], -1)
        C = F.linear(way.emitting(u), x_proj[-states:])
    delta = F.linear(dt, dt_proj)
    y = channel_last_scan(
        u, delta, -torch.exp(precise(A_log)), B, C, precise(D), None, precise(dt_bias), True,
        gap=view.gap(delta, dt_bias, dt_bias, sequence, direction), emit=way.emit, reverse=direction.reverse,
    )  # fmt: skip
    return way.restore(y), lambda: way.restore(F.softplus(way.emitting(delta) + dt_bias))
