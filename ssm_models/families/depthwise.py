"""Depthwise convolutions over a grid of which some tokens are pruned.

While all positions are asked for, it is a convolution over the grid. For fewer, each asked position adds up its
neighbours, of those that travel, weighted: the same values at a cost that falls with the positions, so that the cost
stays a polynomial. Gradients go by way of the whole grid, which keeps one copy of the tokens and not one a tap.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.gather import take_if
from ssm_models.token_view import TokenView


def at_seen(x: Tensor, weight: Tensor, bias: Tensor | None, view: TokenView, everywhere: bool = False) -> Tensor:
    """Convolve those that travel on their grid, with zeros around it and where nothing is left of a token.

    Args:
        x: (b, T, D) features of those that travel.
        weight: (D, 1, side, side), of an odd side.
        bias: (D,), or None.
        view: the tokens, with their grid.
        everywhere: convolve the whole grid nevertheless and take what is asked for. It costs what it costs unpruned;
            where that is little beside the rest of a block, it takes less time than to gather the neighbours.

    Returns:
        What the state sees of it, (b, S, D).
    """
    return _at(x, weight, bias, view, "seen", view.sets.scanned_positions, everywhere)


def at_kept(x: Tensor, weight: Tensor, bias: Tensor | None, view: TokenView, everywhere: bool = False) -> Tensor:
    """Return the kept tokens (b, K, D) of the same."""
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
    """Return the convolution at some positions (b, P), None: at all."""
    side = weight.shape[2]
    # An exported graph, too, is better off with one convolution than with a gather for each tap.
    if positions is None or everywhere or torch.is_grad_enabled() or torch.compiler.is_exporting():
        grid = F.conv2d(view.to_grid(x, *view.grid), weight, bias, padding=side // 2, groups=len(weight))
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
    """Return where the features stand that a convolution of `side` × `side` reads at some positions (b, P).

    Returns:
        For each tap (b · P) rows of those that travel, (b, T + 1, D), as one table; row T of an image is zeros.
    """
    (height, width), reach = view.grid, side // 2
    wide, batch = width + 2 * reach, positions.shape[0]

    def padded(places: Tensor) -> Tensor:
        """Return where positions stand in raster order on the grid with its border."""
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
