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
    delta_softplus: bool,
    reverse: list[int],
) -> Tensor:
    """Scan position by position; see `ssm_models.scan.ops` for the arguments."""
    delta = _activate(delta, delta_bias, delta_softplus)
    states = _states(u, delta, A, B, gap, reverse)
    y = (_at(states, emit) * _per_channel(C, u)).sum(-1)
    if D is not None:
        y = y + D * _at(u, emit)
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
    delta_softplus: bool,
    reverse: list[int],
) -> list[Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and gap; empty where absent."""
    none = grad.new_empty(0)
    dt = _activate(delta, delta_bias, delta_softplus)
    decay_dt = dt if gap is None else dt + gap
    states = _states(u, dt, A, B, gap, reverse)
    seen, skip, c = _at(states, emit), _at(u, emit), _per_channel(C, u)
    dz = none
    if z is not None:
        y = (seen * c).sum(-1) + (0 if D is None else D * skip)
        gate = torch.sigmoid(z)
        dz = grad * y * gate * (1 + z * (1 - gate))
        grad = grad * F.silu(z)
    dC = _per_group(grad[..., None] * seen, C)
    direct = _scatter(grad, emit, u)  # the gradient of y at every position
    into = _scatter(grad[..., None] * c, emit, states)
    dA, groups = torch.zeros_like(A), len(reverse)
    dB, gexponent, gdrive = torch.zeros_like(states), torch.zeros_like(u), torch.zeros_like(u)
    width, length = u.shape[2] // groups, u.shape[1]
    for g, backwards in enumerate(reverse):
        part = slice(g * width, (g + 1) * width)
        gh = torch.zeros_like(states[:, 0, part]) if length else none
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
    ddelta = gexponent + gdrive * u
    if delta_softplus:
        ddelta = ddelta * -torch.expm1(-dt)
    return [
        gdrive * dt + (0 if D is None else D * direct),
        ddelta,
        dA,
        _per_group(dB, B),
        dC,
        none if D is None else (grad * skip).sum((0, 1)),
        dz,
        none if delta_bias is None else ddelta.sum((0, 1)),
        none if gap is None else gexponent,
    ]


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


def _per_channel(x: Tensor, u: Tensor) -> Tensor:
    """Repeat x (b, K, G, N) over the channels of its group: (b, K, D, N)."""
    return x.repeat_interleave(u.shape[2] // x.shape[2], 2)


def _per_group(x: Tensor, like: Tensor) -> Tensor:
    """Sum x (b, K, D, N) over the channels of each group: (b, K, G, N)."""
    batch, kept, channels, states = x.shape
    groups = like.shape[2]
    return x.view(batch, kept, groups, channels // groups, states).sum(3)


def _at(x: Tensor, emit: Tensor | None) -> Tensor:
    """Return the rows of x (b, L, …) at the positions `emit` (b, K), or all of them."""
    return x if emit is None else x[torch.arange(len(x), device=x.device)[:, None], emit]


def _scatter(x: Tensor, emit: Tensor | None, like: Tensor) -> Tensor:
    """Put the rows of x (b, K, …) back to the positions `emit` of a zero tensor (b, L, …)."""
    if emit is None:
        return x
    full = torch.zeros_like(like)
    full[torch.arange(len(x), device=x.device)[:, None], emit] = x
    return full
