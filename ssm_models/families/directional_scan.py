"""One direction of a selective scan over tokens of which some may be pruned; families add up several of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.precision import precise
from ssm_models.scan import channel_last_scan
from ssm_models.scan_paths import Direction
from ssm_models.token_view import TokenView


class ScanWeights(NamedTuple):
    """The weights of one direction.

    Attributes:
        x_proj: (R + 2 N, D); its rows give the low-rank Δ, then B, then C.
        dt_proj: (D, R) from the low-rank Δ to Δ.
        dt_bias: (D,) added to Δ before the softplus.
        A_log: (D, N) log(-A).
        D: (D,) weight of the skip connection.
    """

    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor


def directional_scan(
    u: Tensor,
    view: TokenView,
    sequence: int,
    direction: Direction,
    weights: ScanWeights,
    gate: Tensor | None = None,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Scan along one path over the grid, with Δ, B and C from the token visited.

    Args:
        u: (b, S, D) the scanned tokens, in the order of the path (`view.scan_path(direction).arrange`).
        view: the tokens.
        sequence: index of this direction among those of the model.
        direction: the path, and whether it is scanned backwards.
        weights: of this direction.
        gate: (b, K, D) the output is multiplied by its SiLU; in the order of the path.

    Returns:
        The output (b, K, D) of the kept tokens in raster order, and a function that returns their Δ (b, K, D) after
        the softplus.
    """
    path, (rank, states) = view.scan_path(direction), (weights.dt_proj.shape[1], weights.A_log.shape[1])
    if path.kept_ranks is None:
        dt, B, C = torch.split(F.linear(u, weights.x_proj), [rank, states, states], -1)
    else:  # a pruned token gives no output, so it needs no C
        dt, B = torch.split(F.linear(u, weights.x_proj[:-states]), [rank, states], -1)
        C = F.linear(path.kept(u), weights.x_proj[-states:])
    delta, bias = F.linear(dt, weights.dt_proj), weights.dt_bias
    y = channel_last_scan(
        u,
        delta,
        -torch.exp(precise(weights.A_log)),
        B,
        C,
        D=precise(weights.D),
        z=gate,
        delta_bias=precise(bias),
        delta_softplus=True,
        gap=view.gap(delta, bias, bias, sequence, direction),
        emit=path.kept_ranks,
        reverse=direction.reverse,
    )
    return path.restore(y), lambda: path.restore(F.softplus(path.kept(delta) + bias))
