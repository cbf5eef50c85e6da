"""Depthwise convolutions over a grid of which some tokens are pruned.

For all positions it is a convolution over the grid. For fewer, each position sums its weighted neighbours among the
travelling tokens: the same values at a cost proportional to the positions. With gradients the whole grid is
convolved, which saves one copy of the tokens for the backward pass instead of one per tap.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.families.depthwise_gradient import depthwise_conv
from ssm_models.gather import take_if
from ssm_models.token_view import TokenView


def at_seen(x: Tensor, weight: Tensor, bias: Tensor | None, view: TokenView, everywhere: bool = False) -> Tensor:
    """Convolve the travelling tokens on their grid, with zeros around it and for the tokens that are gone.

    Args:
        x: (b, T, D) features of the travelling tokens.
        weight: (D, 1, side, side), of an odd side.
        bias: (D,), or None.
        view: the tokens, with their grid.
        everywhere: always convolve the whole grid, at its full cost. Where that is small beside the rest of a block,
            it is faster than gathering the neighbours.

    Returns:
        (b, S, D) at the scanned tokens.
    """
    return _at(x, weight, bias, view, "seen", view.sets.scanned_positions, everywhere)


def at_kept(x: Tensor, weight: Tensor, bias: Tensor | None, view: TokenView, everywhere: bool = False) -> Tensor:
    """Return the same at the kept tokens, (b, K, D)."""
    return _at(x, weight, bias, view, "kept", view.sets.kept_positions, everywhere)


def _at(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    view: TokenView,
    name: str,
    positions: Tensor | None,
    everywhere: bool,
) -> Tensor:
    """Return the convolution at `positions` (b, P); None: at all of them."""
    side = weight.shape[2]
    # In an exported graph, too, one convolution is better than a gather for each tap.
    if positions is None or everywhere or torch.is_grad_enabled() or torch.compiler.is_exporting():
        grid = depthwise_conv(view.to_grid(x, *view.grid), weight, bias)
        whole = grid.flatten(2).transpose(1, 2)
        return take_if(whole, positions)
    rows = view.remember(f"around the {name}, {side}", lambda: neighbours(view, positions, side))
    taps = weight.flatten(1).t().to(x.dtype)
    table = F.pad(x, (0, 0, 0, 1)).flatten(0, 1)
    total = x.new_zeros(len(rows[0]), x.shape[2])
    if bias is not None:
        total += bias.to(x.dtype)
    for row, tap in zip(rows, taps, strict=True):
        total.addcmul_(table.index_select(0, row), tap)
    return total.view(*positions.shape, -1)


def neighbours(view: TokenView, positions: Tensor, side: int) -> tuple[Tensor, ...]:
    """Return the rows that a convolution of `side` × `side` reads at `positions` (b, P).

    Returns:
        For each tap (b · P,) rows in the table of the travelling tokens, b · (T + 1); row T of an image is zeros.
    """
    (height, width), reach = view.grid, side // 2
    wide, batch = width + 2 * reach, positions.shape[0]

    def padded(places: Tensor) -> Tensor:
        """Return the raster positions on the grid with its border."""
        return (places // width + reach) * wide + places % width + reach

    where = view.sets.travelling_idx
    if where is None:
        where = torch.arange(view.sets.length, device=positions.device).expand(batch, -1)
    count = where.shape[1]
    filled = torch.arange(count, device=positions.device).expand(batch, -1)
    table = positions.new_full((batch, (height + 2 * reach) * wide), count).scatter(1, padded(where), filled)
    table = table + torch.arange(batch, device=positions.device)[:, None] * (count + 1)
    centre, steps = padded(positions), range(-reach, reach + 1)
    return tuple(table.gather(1, centre + down * wide + right).flatten() for down in steps for right in steps)
