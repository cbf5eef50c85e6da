"""Depthwise convolutions whose backward pass is fast on the CPU for kernels other than 3 × 3.

For such kernels torch's backward pass takes 10 to 15 times as long as its forward pass. Here the gradient of the
images is a convolution with the flipped kernel, that of the bias a sum, and that of the weights a compiled loop.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_FAST_IN_TORCH = 3  # the longest side of a kernel for which torch's own backward pass is as fast
_TILE = 64  # channels that are summed together: a fixed number, so that the inner loop becomes vector instructions


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int] | None = None) -> Tensor:
    """Convolve each channel with its own kernel; the same values as `F.conv2d`, with gradients up to rounding.

    The backward pass is torch's for other precisions than float32, on other devices, for small kernels and without
    numba.

    Args:
        x: (b, D, H, W).
        weight: (D, 1, rows, columns).
        bias: (D,), or None.
        padding: zeros on either side of rows and columns; by default half of the kernel, which must be odd.

    Returns:
        (b, D, h, w).

    >>> depthwise_conv(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 7, 7), None)[0, 0].tolist()
    [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]]
    """
    padding = (weight.shape[2] // 2, weight.shape[3] // 2) if padding is None else padding
    ours = (
        max(weight.shape[2:]) > _FAST_IN_TORCH
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _kernel() is not None
    )
    if ours:
        out: Tensor = _DepthwiseConv.apply(x, weight, bias, padding)
        return out
    return _conv(x, weight, bias, padding)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _conv(x, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        sides = weight.shape[2:]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        around = (sides[0] - 1 - ctx.padding[0], sides[1] - 1 - ctx.padding[1])
        return (
            _conv(grad, weight.flip(2, 3), None, around) if needs_x else None,
            _weight_gradient(x, grad, sides, ctx.padding) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            None,
        )


def _weight_gradient(x: Tensor, grad: Tensor, sides: torch.Size, padding: tuple[int, int]) -> Tensor:
    """Return (D, 1, rows, columns) for x (b, D, H, W) and the gradient of the output (b, D, h, w)."""
    channels = x.shape[1]
    missing = -channels % _TILE
    seen, upstream = (part.detach().permute(0, 2, 3, 1) for part in (x, grad))
    if missing:
        seen, upstream = F.pad(seen, (0, missing)), F.pad(upstream, (0, missing))
    out = np.zeros((*sides, channels + missing), np.float32)
    kernel = _kernel()
    assert kernel is not None  # or torch's backward pass would have been taken
    kernel(seen.contiguous().numpy(), upstream.contiguous().numpy(), *padding, out)
    return torch.from_numpy(out[:, :, :channels]).permute(2, 0, 1).unsqueeze(1).contiguous()


@cache
def _kernel() -> Callable[..., None] | None:
    """Return the compiled loop; None where numba cannot be imported, as the scan does without it."""
    try:
        from numba import float32, int64, njit, types

        from ssm_models.scan.cpu_kernels import cache_folder
    except ImportError:
        return None
    four, three = types.Array(float32, 4, "C"), types.Array(float32, 3, "C")
    compiled: Callable[..., None] = njit(
        types.void(four, four, int64, int64, three),
        nogil=True,
        cache=cache_folder() is not None,
        error_model="numpy",
        fastmath={"contract"},
    )(_add_weight_gradient)
    return compiled


def _add_weight_gradient(x: Any, grad: Any, above: int, before: int, out: Any) -> None:
    """Add to `out` (rows, columns, D) the products of grad (b, h, w, D) with x (b, H, W, D) at each tap's distance.

    There are `above` rows of zeros above x, and `before` columns before it.
    """
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    columns = out.shape[1]
    sums = np.empty((columns, _TILE), np.float32)
    for low in range(0, channels, _TILE):
        for row in range(out.shape[0]):
            sums[:] = 0.0
            for image in range(x.shape[0]):
                for i in range(grad.shape[1]):
                    y = i + row - above
                    if y < 0 or y >= height:
                        continue
                    for j in range(grad.shape[2]):
                        first = j - before
                        upstream = grad[image, i, j, low : low + _TILE]
                        for tap in range(max(0, -first), min(columns, width - first)):
                            seen = x[image, y, first + tap, low : low + _TILE]
                            total = sums[tap]
                            for lane in range(_TILE):
                                total[lane] += upstream[lane] * seen[lane]
            for tap in range(columns):
                for lane in range(_TILE):
                    out[row, tap, low + lane] += sums[tap, lane]
