"""The selective scan as one operator, whichever backend computes it.

The recurrence of Mamba (Gu and Dao, arXiv:2312.00752), with the transition of hidden-state alignment
(Zhan et al., arXiv:2409.18962) at the positions that follow a gap:

    h_t = exp((Δ_t + gap_t) A) h_{t-1} + Δ_t B_t u_t        y_t = C_t h_t + D u_t        y_t · silu(z_t)

A gap is the sum of Δ over the pruned positions between t and the position scanned before it: A is
diagonal, so passing over them is one multiplication by exp(A · gap).

Inside the operator tensors are channel-last, as a model's linear layers leave them:
u, delta, gap (b, L, D); A (D, N); B (b, L, G, N); C (b, K, G, N); z (b, K, D); D, delta_bias (D,).
The D channels form G groups of equal width, each with its own B and C and its own direction (`reverse`;
0 or 1, since the tracer that fvcore stands on knows no lists of truth values).
`emit` (b, K) holds the ascending positions that give an output; without it all do, and K = L.

`orders` (b or 1, P, L) is for models whose P scan directions share Δ, B and C, which belong to the step and
not to the token that it visits (PlainMamba's). Each row is a permutation of the tokens; at step t direction
p visits token orders[p, t]. Then u, z, emit and the output are by token, delta, gap, B and C (b, L, 1, N) by
step, and the outputs of the directions are added up before the one gate:

    h_p = exp((Δ_t + gap_t) A) h_p + Δ_t (B_t + B_orders[p, t]) u_token        y_token = Σ_p (C_t h_p + D u_token)

`B_orders` (b or 1, P, L, N) is what a direction adds to B.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssm_models.scan import backends, traced


@torch.library.custom_op("prunefront::selective_scan", mutates_args=())
def _scan(
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
    backend: str,
) -> Tensor:
    out: Tensor = backends.get(backend).forward(
        u, delta, A, B, C, D, z, delta_bias, gap, emit, orders, B_orders, delta_softplus, reverse
    )
    return out.contiguous()


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> Tensor:
    emit = rest[4]
    return u.new_empty((u.shape[0], u.shape[1] if emit is None else emit.shape[1], u.shape[2]))


@torch.library.custom_op("prunefront::selective_scan_backward", mutates_args=())
def _scan_backward(
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
    backend: str,
) -> list[Tensor]:
    found = backends.get(backend).backward(
        grad, u, delta, A, B, C, D, z, delta_bias, gap, emit, orders, B_orders, delta_softplus, reverse
    )
    tensors = (u, delta, A, B, C, D, z, delta_bias, gap, B_orders)
    return [u.new_empty(0) if x is None else g.to(x.dtype).contiguous() for x, g in zip(tensors, found, strict=True)]


@_scan_backward.register_fake
def _(grad: Tensor, *arguments: Any) -> list[Tensor]:
    u = arguments[0]
    return [u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (*arguments[:9], arguments[11])]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:12])
    ctx.options = inputs[12:]


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    found = _scan_backward(grad.contiguous(), *saved, *ctx.options)
    grads = [g if x is not None else None for x, g in zip((*saved[:9], saved[11]), found, strict=True)]
    return (*grads[:9], None, None, grads[9], None, None, None)


torch.library.register_autograd("prunefront::selective_scan", _autograd, setup_context=_setup_context)


def channel_last_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    gap: Tensor | None = None,
    emit: Tensor | None = None,
    orders: Tensor | None = None,
    B_orders: Tensor | None = None,
    reverse: bool | Sequence[bool] = False,
    backend: str | None = None,
) -> Tensor:
    """Run the selective scan on channel-last tensors; shapes as at the head of this module.

    B and C may leave out the group axis: (b, L, N) is one group. Returns (b, K, D).
    """
    if B.dim() == 3:
        B, C = B[:, :, None], C[:, :, None]
    flags = [int(reverse)] * B.shape[2] if isinstance(reverse, bool) else [int(flag) for flag in reverse]
    _check(u, delta, A, B, C, flags)
    length = C.shape[1] if emit is None else emit.shape[1]
    rest = {"D": (D, (u.shape[2],)), "delta_bias": (delta_bias, (u.shape[2],)), "gap": (gap, u.shape)}
    for what, (tensor, shape) in {**rest, "z": (z, (u.shape[0], length, u.shape[2]))}.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"selective_scan: {what} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if orders is not None:
        _check_orders(u, C, orders, B_orders, flags)
    if torch.compiler.is_exporting():  # whoever runs the graph does not know the operator
        return traced.forward(
            u, delta, A, B, C, D, z, delta_bias, gap, emit, orders, B_orders, delta_softplus, flags
        )  # fmt: skip
    name = backends.choose(u, backend)
    out: Tensor = _scan(
        u, delta, A, B, C, D, z, delta_bias, gap, emit, orders, B_orders, delta_softplus, flags, name
    )  # fmt: skip
    return out


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    gap: Tensor | None = None,
    *,
    reverse: bool | Sequence[bool] = False,
    backend: str | None = None,
) -> Tensor:
    """Run the selective scan with the shapes of mamba-ssm's `selective_scan_fn`.

    Args:
        u, delta, z: (b, D, L).
        A: (D, N), negative for a state that decays.
        B, C: (b, N, L), or (b, G, N, L) for G groups of D / G channels.
        D, delta_bias: (D,).
        delta_softplus: whether Δ = softplus(delta + delta_bias).
        gap: (b, D, L), the sum of Δ (after the softplus) over the pruned positions between each
            position and the one scanned before it.
        reverse: scan from the last position to the first; one flag, or one a group.
        backend: name of a backend, instead of the best one available for the device.

    Returns:
        y: (b, D, L) in u's dtype.

    Raises:
        ValueError: shapes that do not fit one another, or a backend that is not available.
    """

    def last(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.movedim(1, -1)

    if u.dim() != 3 or B.dim() not in (3, 4) or C.dim() != B.dim():
        raise ValueError(
            f"selective_scan: u {tuple(u.shape)}, B {tuple(B.shape)} and C {tuple(C.shape)}: expected u (b, D, L), "
            "and B and C alike (b, N, L) or (b, G, N, L); expand constant ones along L"
        )
    grouped = B.dim() == 4
    B, C = (x.permute(0, 3, 1, 2) if grouped else x.movedim(1, -1) for x in (B, C))
    y = channel_last_scan(
        u.movedim(1, -1), delta.movedim(1, -1), A, B, C, D, last(z), delta_bias, delta_softplus, last(gap),
        reverse=reverse, backend=backend,
    )  # fmt: skip
    return y.movedim(-1, 1)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: list[int]) -> None:
    batch, length, channels = u.shape
    groups, states = B.shape[2], A.shape[-1]
    if delta.shape != u.shape:
        raise ValueError(f"selective_scan: delta has shape {tuple(delta.shape)}, u has {tuple(u.shape)}")
    if A.shape != (channels, states):
        raise ValueError(f"selective_scan: A has shape {tuple(A.shape)}, expected ({channels}, N)")
    if B.shape != (batch, length, groups, states) or C.shape[0] != batch or C.shape[2:] != B.shape[2:]:
        raise ValueError(f"selective_scan: B {tuple(B.shape)} and C {tuple(C.shape)} do not fit u {tuple(u.shape)}")
    if channels % groups or len(reverse) != groups:
        raise ValueError(f"selective_scan: {channels} channels, {groups} groups and {len(reverse)} directions")


def _check_orders(u: Tensor, C: Tensor, orders: Tensor, B_orders: Tensor | None, reverse: list[int]) -> None:
    batch, length, _ = u.shape
    if reverse != [0]:
        raise ValueError("selective_scan: orders are for one group that runs forwards; reverse the order itself")
    if orders.dim() != 3 or orders.shape[0] not in (1, batch) or orders.shape[2] != length:
        raise ValueError(f"selective_scan: orders {tuple(orders.shape)}, expected (1 or {batch}, P, {length})")
    if C.shape[1] != length:
        raise ValueError(f"selective_scan: C has {C.shape[1]} steps, orders have {length}")
    if B_orders is not None and (
        B_orders.shape[0] not in (1, batch) or B_orders.shape[1:] != (*orders.shape[1:], C.shape[3])
    ):
        raise ValueError(f"selective_scan: B_orders {tuple(B_orders.shape)} do not fit orders {tuple(orders.shape)}")
