"""The selective scan written for reading: one step a position, in any dtype and on any device."""

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
    """Scan position by position; see `ssm_models.scan.ops` for the arguments."""
    dt = _activate(delta, delta_bias, delta_softplus)
    skip = _at(u, emit)
    if orders is None:
        y = _read(_states(u, dt, A, B, gap, reverse), C, emit)
    else:
        y = torch.zeros_like(skip)
        for order, B_order in zip(*_walks(orders, B, B_orders), strict=True):
            states = _states(_at(u, order), dt, A, B_order, gap, reverse)
            y = y + _at(_put(_read(states, C, None), order), emit)
    if D is not None:
        y = y + D * skip * (1 if orders is None else orders.shape[1])
    return y if z is None else y * F.silu(z)


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
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias, gap and B_orders; empty where absent."""
    none = grad.new_empty(0)
    dt = _activate(delta, delta_bias, delta_softplus)
    dz = none
    if z is not None:
        ungated = forward(
            u, dt, A, B, C, D, None, None, gap, emit, orders, B_orders, False, reverse
        )  # fmt: skip
        gate = torch.sigmoid(z)
        dz = grad * ungated * gate * (1 + z * (1 - gate))
        grad = grad * F.silu(z)
    direct = _spread(grad, emit, u)  # the gradient of y at every position
    dB_orders = none
    if orders is None:
        du, ddt, dA, dB, dC, dgap = _recurrence_backward(grad, u, dt, A, B, C, gap, emit, reverse)
        paths = 1
    else:
        paths = orders.shape[1]
        du, ddt, dA, dB, dC = (torch.zeros_like(x) for x in (u, dt, A, B, C))
        dgap = torch.zeros_like(dt)
        per_order = []
        for order, B_order in zip(*_walks(orders, B, B_orders), strict=True):
            parts = _recurrence_backward(
                _at(direct, order), _at(u, order), dt, A, B_order, C, gap, None, reverse
            )  # fmt: skip
            du, ddt, dA = du + _put(parts[0], order), ddt + parts[1], dA + parts[2]
            dB, dC, dgap = dB + parts[3], dC + parts[4], dgap + parts[5]
            per_order.append(parts[3][:, :, 0])
        if B_orders is not None:
            dB_orders = torch.stack(per_order, 1).sum_to_size(B_orders.shape)
    ddelta = ddt * -torch.expm1(-dt) if delta_softplus else ddt
    return [
        du + (0 if D is None else D * direct * paths),
        ddelta,
        dA,
        dB,
        dC,
        none if D is None else (grad * _at(u, emit)).sum((0, 1)) * paths,
        dz,
        none if delta_bias is None else ddelta.sum((0, 1)),
        none if gap is None else dgap,
        dB_orders,
    ]


def _recurrence_backward(
    grad: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    gap: Tensor | None,
    emit: Tensor | None,
    reverse: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, Δ, A, B, C and gap for those of y (b, K, D), without D and z."""
    states = _states(u, dt, A, B, gap, reverse)
    decay_dt = dt if gap is None else dt + gap
    dC = _per_group(grad[..., None] * _at(states, emit), C)
    into = _spread(grad[..., None] * _per_channel(C, u), emit, states)
    dA, groups = torch.zeros_like(A), len(reverse)
    dB, gexponent, gdrive = torch.zeros_like(states), torch.zeros_like(u), torch.zeros_like(u)
    width, length = u.shape[2] // groups, u.shape[1]
    for g, backwards in enumerate(reverse):
        part = slice(g * width, (g + 1) * width)
        gh = u.new_zeros(len(u), width, A.shape[1])
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
    return gdrive * dt, gexponent + gdrive * u, dA, _per_group(dB, B), dC, gexponent


def _activate(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    delta = delta if bias is None else delta + bias
    return F.softplus(delta) if softplus else delta


def _states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, gap: Tensor | None, reverse: list[int]) -> Tensor:
    """Return the state after every position, (b, L, D, N)."""
    states = u.new_zeros(*u.shape, A.shape[1])
    decay_dt = dt if gap is None else dt + gap
    width, length = u.shape[2] // len(reverse), u.shape[1]
    for g, backwards in enumerate(reverse):
        part = slice(g * width, (g + 1) * width)
        state = u.new_zeros(len(u), width, A.shape[1])
        for t in reversed(range(length)) if backwards else range(length):
            drive = (dt[:, t, part] * u[:, t, part])[..., None] * B[:, t, g, None]
            state = torch.exp(decay_dt[:, t, part, None] * A[part]) * state + drive
            states[:, t, part] = state
    return states


def _read(states: Tensor, C: Tensor, emit: Tensor | None) -> Tensor:
    """Return C h (b, K, D) of states (b, L, D, N) at the positions that emit."""
    states = _at(states, emit)
    return (states * _per_channel(C, states[..., 0])).sum(-1)


def _walks(orders: Tensor, B: Tensor, B_orders: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return the order (b, L) and B (b, L, 1, N) of each direction."""
    walks = list(orders.expand(len(B), -1, -1).unbind(1))
    if B_orders is None:
        return walks, [B] * len(walks)
    return walks, [B + added[:, :, None] for added in B_orders.unbind(1)]


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
