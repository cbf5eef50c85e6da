"""The selective scan by mamba-ssm's CUDA kernel, for those who have built it.

The library's function knows one Δ, one direction and channels before positions. What else the operator can
do is put around it in torch: a gap by its Δ in the decay and an input scaled back to its own Δ, the groups'
directions by flips, `emit` and `orders` by gathers. D and the gate stay outside wherever the library's would
be wrong. Gradients are torch's own, through the library's. Where there are gaps, Δ must be positive, as after the
softplus: the trick divides by Δ + gap.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    gap: Tensor | None,
    emit: Tensor | None,
    orders: Tensor | None,
    B_orders: Tensor | None,
    delta_softplus: bool,
    reverse: list[int],
) -> Tensor:
    """Scan with the states in float32; see `ssm_models.scan.ops` for the arguments."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, gap, B_orders)
    return _scan(*tensors, emit=emit, orders=orders, softplus=delta_softplus, reverse=reverse).to(u.dtype)


def backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    gap: Tensor | None,
    emit: Tensor | None,
    orders: Tensor | None,
    B_orders: Tensor | None,
    delta_softplus: bool,
    reverse: list[int],
) -> list[Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias, gap and B_orders; empty where absent.

    The scan is computed again: the operator keeps nothing but its inputs.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, gap, B_orders)
    if grad.numel() == 0:
        return [grad.new_empty(0) if x is None else torch.zeros_like(x) for x in tensors]
    stream = torch.cuda.current_stream(u.device) if u.is_cuda else None

    def again() -> tuple[Tensor, ...]:
        with torch.cuda.stream(stream):
            leaves: list[Any] = [x if x is None else x.detach().requires_grad_() for x in tensors]
            out = _scan(*leaves, emit=emit, orders=orders, softplus=delta_softplus, reverse=reverse)
            there = [x for x in leaves if x is not None]
            return torch.autograd.grad(out, there, grad.to(out.dtype), materialize_grads=True)

    # An operator runs below autograd, which records nothing there; a new thread starts above it.
    with ThreadPoolExecutor(1) as pool:
        found = iter(pool.submit(again).result())
    return [grad.new_empty(0) if x is None else next(found) for x in tensors]


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, gap: Tensor | None, B_orders: Tensor | None, *,
    emit: Tensor | None, orders: Tensor | None, softplus: bool, reverse: list[int],
) -> Tensor:  # fmt: skip
    if u.numel() == 0:
        return u.new_zeros((u.shape[0], u.shape[1] if emit is None else emit.shape[1], u.shape[2]))
    if orders is None and gap is None and emit is None and not any(reverse):
        return _library(u, delta, A, B, C, D, z, bias, softplus)
    skip = _at(u, emit)
    if orders is not None:
        paths = orders.shape[1]
        y = _sum_over_orders(u, delta, A, B, C, bias, gap, B_orders, orders, softplus)
        y = _at(y, emit)
    else:
        paths = 1
        if emit is not None:  # the library reads C at every position
            index = emit[:, :, None, None].expand(C.shape)
            C = C.new_zeros(B.shape).scatter(1, index, C)
        y = _by_direction(u, delta, A, B, C, bias, gap, softplus, reverse)
        y = _at(y, emit)
    if D is not None:
        y = y + D * paths * skip
    return y if z is None else y * F.silu(z)


def _by_direction(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, gap: Tensor | None,
    softplus: bool, reverse: list[int],
) -> Tensor:  # fmt: skip
    """Scan the groups that run backwards on flipped inputs. One call, whatever the directions."""
    backwards = torch.tensor([bool(flag) for flag in reverse], device=u.device)
    channels = backwards.repeat_interleave(u.shape[2] // len(reverse))

    def turned(x: Tensor, flags: Tensor) -> Tensor:
        return torch.where(flags, x.flip(1), x) if any(reverse) else x

    u, delta = turned(u, channels), turned(delta, channels)
    B, C = turned(B, backwards[:, None]), turned(C, backwards[:, None])
    if gap is not None:
        gap = turned(gap, channels)
    return turned(_with_gap(u, delta, A, B, C, bias, gap, softplus), channels)


def _sum_over_orders(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, gap: Tensor | None,
    B_orders: Tensor | None, orders: Tensor, softplus: bool,
) -> Tensor:  # fmt: skip
    """Scan each direction's sequence and add up the outputs at their tokens."""
    total = torch.zeros_like(u)
    for p in range(orders.shape[1]):
        order = orders[:, p].expand(len(u), -1)
        b = B if B_orders is None else (B + B_orders[:, p, :, None]).to(B.dtype)
        y = _with_gap(_at(u, order), delta, A, b, C, bias, gap, softplus)
        total = total.scatter_add(1, order[:, :, None].expand(y.shape), y.to(total.dtype))
    return total


def _with_gap(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, gap: Tensor | None,
    softplus: bool,
) -> Tensor:  # fmt: skip
    """Scan forwards. A gap adds to the decay's Δ, and the input is scaled so that it keeps its own."""
    if gap is None:
        return _library(u, delta, A, B, C, None, None, bias, softplus)
    # In float32: the ratio of two Δ would lose what a half-precision u still holds.
    dt = delta.float() if bias is None else delta.float() + bias.float()
    dt = F.softplus(dt) if softplus else dt
    held = dt + gap.float()
    return _library(
        u.float() * dt / held.where(held != 0, torch.ones_like(held)), held, A, B, C, None, None, None, False
    ).to(u.dtype)


def _library(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    bias: Tensor | None, softplus: bool,
) -> Tensor:  # fmt: skip
    """Call mamba-ssm with its shapes: (b, D, L), B and C (b, G, N, L), parameters in float32."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found, unused-ignore]

    def last(x: Tensor) -> Tensor:
        return x.to(u.dtype).movedim(1, -1).contiguous()

    def parameter(x: Tensor | None) -> Tensor | None:
        return x if x is None else x.float()

    y: Any = selective_scan_fn(
        last(u), last(delta), A.float(), last(B), last(C), parameter(D), None if z is None else last(z),
        delta_bias=parameter(bias), delta_softplus=softplus,
    )  # fmt: skip
    return torch.as_tensor(y).movedim(-1, 1)


def _at(x: Tensor, index: Tensor | None) -> Tensor:
    """Return the rows of x (b, L, D) at the positions `index` (b, K), or all of them."""
    return x if index is None else x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
