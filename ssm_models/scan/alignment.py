"""Hidden-state alignment: the sum of Δ over the pruned positions that a scan passes over.

A pruned position keeps its transition and loses its input (Zhan et al., arXiv:2409.18962). The paper does not say
which Δ it has in later blocks. These are the policies, by the names that schedules use.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.precision import precise


def skipped(positions: Tensor, length: int, reverse: bool) -> Tensor:
    """Count the pruned positions between each kept one and the one scanned before it.

    Args:
        positions: (b, K) ascending positions of the kept tokens among `length`.
        length: tokens of the whole sequence.
        reverse: whether the scan runs from the last position to the first.

    Returns:
        (b, K); before the first token scanned, the state is zero and the count has no effect.
    """
    if reverse:
        after = torch.cat([positions[:, 1:], positions.new_full((positions.shape[0], 1), length)], 1)
        return after - positions - 1
    before = torch.cat([positions.new_full((positions.shape[0], 1), -1), positions[:, :-1]], 1)
    return positions - before - 1


def gap_of_bias(counts: Tensor, delta_bias: Tensor) -> Tensor:
    """Policy `bias`: each pruned position has Δ = softplus(dt_bias), as a token with zero features would.

    Returns (b, K, D) for counts (b, K) and delta_bias (D,).
    """
    return counts[..., None] * F.softplus(delta_bias)


def gap_of_neighbours(counts: Tensor, delta: Tensor, reverse: bool) -> Tensor:
    """Policy `neighbour`: each pruned position has the mean Δ of the kept tokens on either side.

    Returns (b, K, D) for counts (b, K) and delta (b, K, D), the Δ of the kept tokens after softplus.
    """
    before = torch.cat([delta[:, 1:], delta[:, -1:]], 1) if reverse else torch.cat([delta[:, :1], delta[:, :-1]], 1)
    return counts[..., None] * (delta + before) / 2


def hold(delta: Tensor, index: Tensor, held: Tensor | None, reverse: bool) -> Tensor:
    """Policy `hold`: a pruned position keeps the Δ that it had when it was pruned.

    Args:
        delta: (b, K, D) Δ, after softplus, in the block that prunes.
        index: (b, k) ascending places, among the K, of the tokens that stay.
        held: (b, K, D) gap sums from earlier steps; None at the first.
        reverse: direction of the scan.

    Returns:
        (b, k, D) gap sums of the tokens that stay.
    """
    kind, delta = delta.dtype, precise(delta)  # differences of running sums
    stays = torch.zeros_like(delta[..., 0]).scatter(1, index, torch.ones_like(index, dtype=delta.dtype))
    passed = delta * (1 - stays[..., None])
    passed = passed if held is None else passed + held
    running = passed.flip(1).cumsum(1).flip(1) if reverse else passed.cumsum(1)
    at = running.gather(1, index[..., None].expand(-1, -1, delta.shape[2]))
    zero = torch.zeros_like(at[:, :1])
    return (at - (torch.cat([at[:, 1:], zero], 1) if reverse else torch.cat([zero, at[:, :-1]], 1))).to(kind)
