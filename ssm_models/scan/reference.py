"""The selective scan written for readability: one step per position, in any dtype and on any device."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.scan.arguments import ScanArguments, ScanGradients


def forward(arguments: ScanArguments) -> Tensor:
    """Scan position by position; return (b, K, D)."""
    y = _before_gate(arguments, arguments.activated_delta())
    return y if arguments.z is None else y * F.silu(arguments.z)


def backward(grad: Tensor, arguments: ScanArguments) -> ScanGradients:
    """Return the gradients of all inputs, given that of the output (b, K, D)."""
    a, dt = arguments, arguments.activated_delta()
    dz = None
    if a.z is not None:
        gate = torch.sigmoid(a.z)
        dz = grad * _before_gate(a, dt) * gate * (1 + a.z * (1 - gate))
        grad = grad * F.silu(a.z)
    everywhere = _spread(grad, a.emit, a.u)  # the gradient of y at every position
    inner = _recurrence_backward(grad, a, dt) if a.orders is None else _orders_backward(everywhere, a, dt)
    ddelta = inner.dt * -torch.expm1(-dt) if a.delta_softplus else inner.dt
    return ScanGradients(
        u=inner.u + (0 if a.D is None else a.D * everywhere * a.paths),
        delta=ddelta,
        A=inner.A,
        B=inner.B,
        C=inner.C,
        D=None if a.D is None else (grad * _at(a.u, a.emit)).sum((0, 1)) * a.paths,
        z=dz,
        delta_bias=None if a.delta_bias is None else ddelta.sum((0, 1)),
        gap=None if a.gap is None else inner.gap,
        B_orders=inner.B_orders,
    )


class _Inner(NamedTuple):
    """Gradients of the recurrence alone, without bias, softplus, D and z; `gap` is that of the exponent's Δ + gap."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    gap: Tensor
    B_orders: Tensor | None = None


def _before_gate(a: ScanArguments, dt: Tensor) -> Tensor:
    """Return y (b, K, D) with the skip connection and without the gate."""
    skip = _at(a.u, a.emit)
    if a.orders is None:
        y = _read(_states(a, dt), a.C, a.emit)
    else:
        y = torch.zeros_like(skip)
        for order, walk in _walks(a, a.orders):
            y = y + _at(_put(_read(_states(walk, dt), a.C, None), order), a.emit)
    return y if a.D is None else y + a.D * skip * a.paths


def _orders_backward(grad: Tensor, a: ScanArguments, dt: Tensor) -> _Inner:
    """Add up the gradients of the directions, given that of y at every token (b, L, D)."""
    assert a.orders is not None
    du, ddt, dA, dB, dC = (torch.zeros_like(x) for x in (a.u, dt, a.A, a.B, a.C))
    dgap, per_order = torch.zeros_like(dt), []
    for order, walk in _walks(a, a.orders):
        parts = _recurrence_backward(_at(grad, order), walk, dt)
        du, ddt, dA = du + _put(parts.u, order), ddt + parts.dt, dA + parts.A
        dB, dC, dgap = dB + parts.B, dC + parts.C, dgap + parts.gap
        per_order.append(parts.B[:, :, 0])
    added = None if a.B_orders is None else torch.stack(per_order, 1).sum_to_size(a.B_orders.shape)
    return _Inner(du, ddt, dA, dB, dC, dgap, added)


def _recurrence_backward(grad: Tensor, a: ScanArguments, dt: Tensor) -> _Inner:
    """Return the gradients of a scan without `orders`, given that of y (b, K, D)."""
    u, A, B, C = a.u, a.A, a.B, a.C
    states = _states(a, dt)
    decay_dt = dt if a.gap is None else dt + a.gap
    dC = _per_group(grad[..., None] * _at(states, a.emit), C)
    into = _spread(grad[..., None] * _per_channel(C, u), a.emit, states)
    dA = torch.zeros_like(A)
    dB, gexponent, gdrive = torch.zeros_like(states), torch.zeros_like(u), torch.zeros_like(u)
    width, length = u.shape[2] // a.groups, u.shape[1]
    for g, backwards in enumerate(a.reverse):
        part = slice(g * width, (g + 1) * width)
        gh = u.new_zeros(len(u), width, a.states)
        order = list(reversed(range(length))) if backwards else list(range(length))
        for step in reversed(range(length)):
            t = order[step]
            before = states[:, order[step - 1], part] if step else torch.zeros_like(gh)
            decay = torch.exp(decay_dt[:, t, part, None] * A[part])
            gh = gh + into[:, t, part]
            gp = gh * before * decay  # the gradient of the exponent Δ A
            dA[part] += (gp * decay_dt[:, t, part, None]).sum(0)
            gexponent[:, t, part] = (gp * A[part]).sum(-1)
            gdrive[:, t, part] = (gh * B[:, t, g, None]).sum(-1)
            dB[:, t, part] = gh * (dt[:, t, part] * u[:, t, part])[..., None]
            gh = gh * decay
    return _Inner(gdrive * dt, gexponent + gdrive * u, dA, _per_group(dB, B), dC, gexponent)


def _states(a: ScanArguments, dt: Tensor) -> Tensor:
    """Return the state after every position, (b, L, D, N), of a scan without `orders`."""
    u, A, B = a.u, a.A, a.B
    states = u.new_zeros(*u.shape, a.states)
    decay_dt = dt if a.gap is None else dt + a.gap
    width, length = u.shape[2] // a.groups, u.shape[1]
    for g, backwards in enumerate(a.reverse):
        part = slice(g * width, (g + 1) * width)
        state = u.new_zeros(len(u), width, a.states)
        for t in reversed(range(length)) if backwards else range(length):
            drive = (dt[:, t, part] * u[:, t, part])[..., None] * B[:, t, g, None]
            state = torch.exp(decay_dt[:, t, part, None] * A[part]) * state + drive
            states[:, t, part] = state
    return states


def _read(states: Tensor, C: Tensor, emit: Tensor | None) -> Tensor:
    """Return C h (b, K, D) of states (b, L, D, N) at the positions that emit."""
    states = _at(states, emit)
    return (states * _per_channel(C, states[..., 0])).sum(-1)


def _walks(a: ScanArguments, orders: Tensor) -> Iterator[tuple[Tensor, ScanArguments]]:
    """Give the order (b, L) of each direction, and the arguments of its own scan, without `orders` and `emit`."""
    walks = orders.expand(len(a.B), -1, -1).unbind(1)
    added = [None] * len(walks) if a.B_orders is None else a.B_orders.unbind(1)
    for order, extra in zip(walks, added, strict=True):
        B = a.B if extra is None else a.B + extra[:, :, None]
        yield order, replace(a, u=_at(a.u, order), B=B, emit=None, orders=None, B_orders=None)


def _per_channel(x: Tensor, u: Tensor) -> Tensor:
    """Repeat x (b, K, G, N) over the channels of its group: (b, K, D, N)."""
    return x.repeat_interleave(u.shape[2] // x.shape[2], 2)


def _per_group(x: Tensor, like: Tensor) -> Tensor:
    """Sum x (b, K, D, N) over the channels of each group: (b, K, G, N)."""
    batch, kept, channels, states = x.shape
    groups = like.shape[2]
    return x.view(batch, kept, groups, channels // groups, states).sum(3)


def _at(x: Tensor, index: Tensor | None) -> Tensor:
    """Return the rows of x (b, L, …) at the positions `index` (b, K), or all of them."""
    return x if index is None else x[torch.arange(len(x), device=x.device)[:, None], index]


def _put(x: Tensor, order: Tensor) -> Tensor:
    """Undo `_at` for a permutation `order` (b, L) of the rows of x (b, L, …)."""
    return _spread(x, order, x)


def _spread(x: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """Put the rows of x (b, K, …) to the positions `index` of a zero tensor shaped as `like` (b, L, …)."""
    if index is None:
        return x
    full = torch.zeros_like(like)
    full[torch.arange(len(x), device=x.device)[:, None], index] = x
    return full
