"""The selective scan as one operator, whichever backend computes it.

The recurrence of Mamba (Gu and Dao, arXiv:2312.00752), with the transition of hidden-state alignment
(Zhan et al., arXiv:2409.18962) at the positions that follow a gap:

    h_t = exp((Δ_t + gap_t) A) h_{t-1} + Δ_t B_t u_t        y_t = C_t h_t + D u_t        y_t · silu(z_t)

A gap is the sum of Δ over the pruned positions between t and the position scanned before it. A is diagonal, so one
multiplication by exp(A · gap) decays the state over all of them.

The D channels form G groups of equal width, each with its own B and C and its own direction (`reverse`). With `emit`,
only some positions give an output.

`orders` is for models whose P scan directions share Δ, B and C, which belong to the step and not to the token visited
(PlainMamba's). At step t direction p visits token orders[p, t]. Then u, z, emit and the output are indexed by token;
delta, gap, B and C by step. The outputs of the directions are summed before the one gate:

    h_p = exp((Δ_t + gap_t) A) h_p + Δ_t (B_t + B_orders[p, t]) u_token        y_token = Σ_p (C_t h_p + D u_token)

`ScanArguments` documents the shapes. PyTorch's operators take and return flat lists: this module is the only one that
flattens the arguments and their gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssm_models.scan import backends, traced
from ssm_models.scan.arguments import ARGUMENT_NAMES, ScanArguments, ScanGradients

# The fields of `ScanArguments` in their order, and the name of a backend.
_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? gap, "
    "Tensor? emit, Tensor? orders, Tensor? B_orders, bool delta_softplus, SymInt[] reverse, str backend"
)
_TENSORS = ARGUMENT_NAMES.index("delta_softplus")  # the tensors come first


@torch.library.custom_op("prunefront::selective_scan", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _scan(*inputs: Any) -> Tensor:
    arguments, backend = ScanArguments(*inputs[:-1]), inputs[-1]
    out: Tensor = backends.get(backend).forward(arguments)
    return out.contiguous()


@_scan.register_fake
def _(*inputs: Any) -> Tensor:
    arguments = ScanArguments(*inputs[:-1])
    return arguments.u.new_empty(arguments.out_shape)


@torch.library.custom_op(
    "prunefront::selective_scan_backward", mutates_args=(), schema=f"(Tensor grad, {_INPUTS}) -> Tensor[]"
)
def _scan_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    """Return a gradient for each of `ScanArguments.differentiable`: contiguous, or empty where it is absent."""
    arguments, backend = ScanArguments(*inputs[:-1]), inputs[-1]
    found: ScanGradients = backends.get(backend).backward(grad, arguments)
    return [
        arguments.u.new_empty(0) if x is None else found.of(name).to(x.dtype).contiguous()
        for name, x in arguments.differentiable().items()
    ]


@_scan_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> list[Tensor]:
    arguments = ScanArguments(*inputs[:-1])
    return [
        arguments.u.new_empty(0) if x is None else x.new_empty(x.shape) for x in arguments.differentiable().values()
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    inputs = (*ctx.saved_tensors, *ctx.options)
    arguments = ScanArguments(*inputs[:-1])
    found = _scan_backward(grad.contiguous(), *inputs)
    given = arguments.differentiable()
    grads = {name: None if given[name] is None else g for name, g in zip(given, found, strict=True)}
    return (*(grads.get(name) for name in ARGUMENT_NAMES), None)  # none for the backend


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
    """Run the selective scan on channel-last tensors, of the shapes that `ScanArguments` documents.

    Args:
        u, delta, A, D, z, delta_bias, gap, emit, orders, B_orders, delta_softplus: see `ScanArguments`.
        B, C: as there, or without the group axis: (b, L, N) is one group.
        reverse: whether to scan from the last position to the first; one flag, or one per group.
        backend: name of a backend; None chooses the fastest for the device.

    Returns:
        (b, K, D) in u's dtype.

    Raises:
        ValueError: the shapes do not fit one another.
        BackendError: `backend` is unknown, or cannot run here.

    >>> u, B = torch.ones(1, 5, 4), torch.ones(1, 5, 2)
    >>> channel_last_scan(u, u, -torch.ones(4, 2), B, B, emit=torch.tensor([[0, 4]])).shape
    torch.Size([1, 2, 4])
    """
    if B.dim() == 3:
        B, C = B[:, :, None], C[:, :, None]
    flags = [int(reverse)] * B.shape[2] if isinstance(reverse, bool) else [int(flag) for flag in reverse]
    arguments = ScanArguments(
        u, delta, A, B, C, D, z, delta_bias, gap, emit, orders, B_orders, delta_softplus, flags
    ).check()  # fmt: skip
    if torch.compiler.is_exporting():  # whoever runs the graph does not know the operator
        return traced.forward(arguments)
    out: Tensor = _scan(*arguments.flatten(), backends.choose(u, backend))
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
        reverse: whether to scan from the last position to the first; one flag, or one per group.
        backend: name of a backend; None chooses the fastest for the device.

    Returns:
        y: (b, D, L) in u's dtype.

    Raises:
        ValueError: the shapes do not fit one another.
        BackendError: `backend` is unknown, or cannot run here. It is a ValueError too.

    A state that neither decays nor is gated adds up its inputs:

    >>> u, one = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 1, 3)
    >>> selective_scan(u, one, torch.zeros(1, 1), one, one)
    tensor([[[1., 3., 6.]]])

    With A = -1, a gap of ln 2 before the last position halves the state there:

    >>> decay, gap = torch.full((1, 1, 3), 1e-9), torch.tensor([[[0.0, 0.0, 0.6931472]]])
    >>> y = selective_scan(u, decay, torch.full((1, 1), -1.0), one / decay, one, gap=gap)
    >>> torch.testing.assert_close(y, torch.tensor([[[1.0, 3.0, 4.5]]]))
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
