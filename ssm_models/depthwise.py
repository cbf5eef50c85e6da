"""A depthwise convolution over a grid of which some tokens are left, for those whose output is needed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssm_models.pruning import TokenView, take


def depthwise(x: Tensor, conv: nn.Conv2d, view: TokenView, kept: bool = False) -> Tensor:
    """Convolve the tokens that travel on their grid, which holds zeros where nothing is left of one.

    Where not all outputs are needed, only these are computed, tap by tap from the tokens that are there. With 3 × 3
    taps this takes half of the time of scattering, convolving and gathering, or less, whatever the share. Gradients
    go by way of the whole grid, which keeps one copy of the tokens and not one a tap.

    Args:
        x: (b, T, D) those that travel.
        conv: D groups of one channel, odd sides, stride 1, padded so that the grid stays as large.
        view: the tokens; there are no protected ones.
        kept: whether outputs are those of the kept tokens, not of all that the state sees.

    Returns:
        (b, S, D) of the tokens that the state sees, or (b, K, D) of the kept.
    """
    at = view.positions if kept else view.seen
    if at is None or torch.is_grad_enabled():
        grid = conv(view.to_grid(x, *view.grid)).flatten(2).transpose(1, 2)
        return grid if at is None else take(grid, at)
    sides = (conv.kernel_size[0], conv.kernel_size[1])
    table = view.remember(f"neighbours {sides} {kept}", lambda: neighbours(view, at, sides))
    rows = torch.cat([x.reshape(-1, x.shape[2]), x.new_zeros(1, x.shape[2])])
    taps = conv.weight.flatten(1).t().contiguous()
    out = rows.new_zeros(table.shape[1], x.shape[2])
    for tap in range(table.shape[0]):
        out.addcmul_(rows.index_select(0, table[tap]), taps[tap])
    out = out.view(*at.shape, -1)
    return out if conv.bias is None else out + conv.bias


def neighbours(view: TokenView, at: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return, for each tap of a kernel, which row each output reads.

    Args:
        view: the tokens; row i · T + j is token j of those that travel in image i, and the last row, b · T, is zero.
        at: (b, K) positions of the outputs.
        sides: of the kernel, both odd.

    Returns:
        (taps, b · K) whole numbers in 0 … b · T.
    """
    (height, width), (tall, wide) = view.grid, sides
    batch, device = len(at), at.device
    travelling = view.travelling
    if travelling is None:
        travelling = torch.arange(view.length, device=device).expand(batch, -1)
    count = travelling.shape[1]
    rows = torch.arange(batch * count, device=device).view(batch, count)
    grid = rows.new_full((batch, height * width), batch * count).scatter(1, travelling, rows)
    margin = (wide // 2, wide // 2, tall // 2, tall // 2)
    padded = F.pad(grid.view(batch, height, width), margin, value=batch * count).flatten(1)
    across = width + wide - 1
    corner = at // width * across + at % width  # of the window around each output
    taps = [padded.gather(1, corner + row * across + column) for row in range(tall) for column in range(wide)]
    return torch.stack(taps).flatten(1)
