"""The gradient of a large depthwise convolution on the CPU.

oneDNN's depthwise convolutions are fast forwards, and backwards for kernels of 3 × 3. Its gradient of the weights of
a 7 × 7 kernel takes 10 to 15 times as long as the forward pass, which has as many products; compiled loops over
channels-last arrays take two to three times as long.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import float32, njit, types
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssm_models.scan.cpu_kernels import cache_folder

LEAST_SIDE = 5  # of a kernel; below, oneDNN is faster
_TILE = 64  # channels that are summed together: a fixed number, so that the inner loop becomes vector instructions


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel with its own kernel, with zeros around the grid; the same values as `F.conv2d`.

    Where a gradient is asked for, in float32 on the CPU, the backward pass is faster than torch's for kernels of at
    least `LEAST_SIDE`. Its gradients differ from torch's in the order of sums.

    Args:
        x: (b, D, h, w).
        weight: (D, 1, side, side), of an odd side.
        bias: (D,), or None.

    Returns:
        (b, D, h, w).

    >>> depthwise_conv(torch.ones(1, 2, 3, 3), torch.ones(2, 1, 7, 7), None)[0, 0].tolist()
    [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]]
    """
    fast = (
        weight.shape[2] >= LEAST_SIDE
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    if fast:
        out: Tensor = _DepthwiseConv.apply(x, weight, bias)
        return out
    return _conv(x, weight, bias)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=len(weight))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _conv(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _conv(grad, weight.flip(2, 3), None) if needs_x else None,
            _weight_gradient(x, grad, weight.shape[2]) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
        )


def _weight_gradient(x: Tensor, grad: Tensor, side: int) -> Tensor:
    """Return (D, 1, side, side) for x and grad of shape (b, D, h, w)."""
    channels = x.shape[1]
    missing = -channels % _TILE
    seen, upstream = (part.detach().permute(0, 2, 3, 1) for part in (x, grad))
    if missing:
        seen, upstream = F.pad(seen, (0, missing)), F.pad(upstream, (0, missing))
    out = np.zeros((side, side, channels + missing), np.float32)
    _kernel()(seen.contiguous().numpy(), upstream.contiguous().numpy(), out)
    return torch.from_numpy(out[:, :, :channels]).permute(2, 0, 1).unsqueeze(1).contiguous()


@cache
def _kernel() -> Callable[[Any, Any, Any], None]:
    four, three = types.Array(float32, 4, "C"), types.Array(float32, 3, "C")
    compiled: Callable[[Any, Any, Any], None] = njit(
        types.void(four, four, three),
        nogil=True,
        cache=cache_folder() is not None,
        error_model="numpy",
        fastmath={"contract"},
    )(_add_weight_gradient)
    return compiled


def _add_weight_gradient(x: Any, grad: Any, out: Any) -> None:
    """Add to `out` (side, side, D) the products of grad (b, h, w, D) with x (b, h, w, D) at each tap's distance."""
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    side = out.shape[0]
    reach = side // 2
    sums = np.empty((side, _TILE), np.float32)
    for low in range(0, channels, _TILE):
        for row in range(side):
            sums[:] = float32(0.0)
            for image in range(x.shape[0]):
                for y in range(max(0, reach - row), min(height, height + reach - row)):
                    for column in range(width):
                        upstream = grad[image, y, column, low : low + _TILE]
                        for tap in range(max(0, reach - column), min(side, width + reach - column)):
                            seen = x[image, y + row - reach, column + tap - reach, low : low + _TILE]
                            total = sums[tap]
                            for lane in range(_TILE):
                                total[lane] += upstream[lane] * seen[lane]
            for tap in range(side):
                for lane in range(_TILE):
                    out[row, tap, low + lane] += sums[tap, lane]
