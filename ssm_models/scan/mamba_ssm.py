"""The selective scan by mamba-ssm's CUDA kernel, where that is installed.

The library supports one Δ, one direction and channels before positions. The rest of the operator is built around it
in torch: a gap is added to Δ, and the input scaled back to its own Δ; directions are flips; `emit` and `orders` are
gathers. D and the gate are applied outside wherever the library's would be wrong. Gradients are autograd's, through
the library's. With gaps Δ must be positive, as it is after the softplus: the scaling divides by Δ + gap.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.scan.arguments import ScanArguments, ScanGradients


def forward(arguments: ScanArguments) -> Tensor:
    """Scan with the states in float32; return (b, K, D) in u's dtype."""
    return _scan(arguments).to(arguments.u.dtype)


def backward(grad: Tensor, arguments: ScanArguments) -> ScanGradients:
    """Return the gradients of all inputs, given that of the output (b, K, D).

    The scan is computed again: the operator keeps nothing but its inputs.
    """
    if grad.numel() == 0:
        return ScanGradients.zeros(arguments)
    tensors = arguments.differentiable()
    stream = torch.cuda.current_stream(arguments.u.device) if arguments.u.is_cuda else None

    def again() -> dict[str, Tensor]:
        with torch.cuda.stream(stream):
            leaves: dict[str, Any] = {k: x.detach().requires_grad_() for k, x in tensors.items() if x is not None}
            out = _scan(replace(arguments, **leaves))
            found = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype), materialize_grads=True)
            return dict(zip(leaves, found, strict=True))

    # An operator runs below autograd, which records nothing there; a new thread starts above it.
    with ThreadPoolExecutor(1) as pool:
        found: dict[str, Any] = pool.submit(again).result()
    gradients: dict[str, Any] = {name: found.get(name) for name in tensors}
    return ScanGradients(**gradients)


def _scan(a: ScanArguments) -> Tensor:
    if a.u.numel() == 0:
        return a.u.new_zeros(a.out_shape)
    if a.orders is None and a.gap is None and a.emit is None and not any(a.reverse):
        return _library(a)
    if a.orders is not None:
        y = _sum_over_orders(a, a.orders)
    else:
        C = a.C
        if a.emit is not None:  # the library reads C at every position
            C = C.new_zeros(a.B.shape).scatter(1, a.emit[:, :, None, None].expand(C.shape), C)
        y = _by_direction(replace(a, C=C))
    y = _at(y, a.emit)
    if a.D is not None:
        y = y + a.D * a.paths * _at(a.u, a.emit)
    return y if a.z is None else y * F.silu(a.z)


def _by_direction(a: ScanArguments) -> Tensor:
    """Scan the groups that run backwards on flipped inputs. One call, whatever the directions."""
    backwards = torch.tensor([bool(flag) for flag in a.reverse], device=a.u.device)
    channels = backwards.repeat_interleave(a.u.shape[2] // a.groups)

    def turned(x: Tensor, flags: Tensor) -> Tensor:
        return torch.where(flags, x.flip(1), x) if any(a.reverse) else x

    flipped = replace(
        a,
        u=turned(a.u, channels),
        delta=turned(a.delta, channels),
        B=turned(a.B, backwards[:, None]),
        C=turned(a.C, backwards[:, None]),
        gap=None if a.gap is None else turned(a.gap, channels),
    )
    return turned(_with_gap(flipped), channels)


def _sum_over_orders(a: ScanArguments, orders: Tensor) -> Tensor:
    """Scan each direction's sequence and add up the outputs at their tokens."""
    total = torch.zeros_like(a.u)
    for p in range(a.paths):
        order = orders[:, p].expand(len(a.u), -1)
        B = a.B if a.B_orders is None else (a.B + a.B_orders[:, p, :, None]).to(a.B.dtype)
        y = _with_gap(replace(a, u=_at(a.u, order), B=B))
        total = total.scatter_add(1, order[:, :, None].expand(y.shape), y.to(total.dtype))
    return total


def _with_gap(a: ScanArguments) -> Tensor:
    """Scan forwards, without D and z. A gap adds to the decay's Δ; the input is scaled so that it keeps its own."""
    bare = replace(a, D=None, z=None)
    if a.gap is None:
        return _library(bare)
    # In float32: the ratio of two Δ would lose what a half-precision u still holds.
    bias = None if a.delta_bias is None else a.delta_bias.float()
    dt = replace(a, delta=a.delta.float(), delta_bias=bias).activated_delta()
    decay = dt + a.gap.float()
    scaled = a.u.float() * dt / decay.where(decay != 0, torch.ones_like(decay))
    return _library(replace(bare, u=scaled, delta=decay, delta_bias=None, delta_softplus=False)).to(a.u.dtype)


def _library(a: ScanArguments) -> Tensor:
    """Call mamba-ssm with its shapes: (b, D, L), B and C (b, G, N, L), parameters in float32."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found, unused-ignore]

    def last(x: Tensor) -> Tensor:
        return x.to(a.u.dtype).movedim(1, -1).contiguous()

    def parameter(x: Tensor | None) -> Tensor | None:
        return x if x is None else x.float()

    y: Any = selective_scan_fn(
        last(a.u), last(a.delta), a.A.float(), last(a.B), last(a.C), parameter(a.D),
        None if a.z is None else last(a.z), delta_bias=parameter(a.delta_bias), delta_softplus=a.delta_softplus,
    )  # fmt: skip
    return torch.as_tensor(y).movedim(-1, 1)


def _at(x: Tensor, index: Tensor | None) -> Tensor:
    """Return the rows of x (b, L, D) at the positions `index` (b, K), or all of them."""
    return x if index is None else x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
