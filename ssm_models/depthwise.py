"""Depthwise convolutions over a grid of which some tokens are pruned."""

from torch import Tensor, nn

from ssm_models.pruning import TokenView, take


def at_seen(conv: nn.Conv2d, x: Tensor, view: TokenView) -> Tensor:
    """Convolve those that travel, x (b, T, D), on their grid; return what the state sees of it, (b, S, D)."""
    return view.from_grid(conv(view.to_grid(x, *view.grid)))


def at_kept(conv: nn.Conv2d, x: Tensor, view: TokenView) -> Tensor:
    """Return the kept tokens (b, K, D) of the same."""
    seen = at_seen(conv, x, view)
    return seen if view.emit is None else take(seen, view.emit)
