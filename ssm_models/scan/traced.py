"""The selective scan as `torch.export` traces it: one loop over positions, whose body is in the graph once.

An exported model has to run where the custom operator does not exist. Unrolled, the reference would give a graph that
grows with the number of tokens. As a higher-order `scan` it is a few nodes for any number, and ONNX has the same
loop, `Scan`. The operations and their order are those of the reference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.scan.arguments import ScanArguments


def forward(arguments: ScanArguments) -> Tensor:
    """Scan with a loop that the graph keeps as one; return (b, K, D)."""
    a, dt, C = arguments, arguments.activated_delta(), arguments.C
    skip = a.u if a.emit is None else _tokens(a.u, a.emit)
    decay = dt if a.gap is None else dt + a.gap
    if a.orders is None:
        if a.emit is not None:  # a step that gives no output reads nothing
            C = C.new_zeros(a.B.shape).scatter(1, a.emit[:, :, None, None].expand(-1, -1, *C.shape[2:]), C)
        drive, A = _grouped(dt * a.u, a.B), a.A.reshape(a.groups, -1, a.states)
        y = _loop(drive, _grouped(decay, a.B), A, a.B, C, a.reverse)
    else:
        y = _along(a.orders, a, dt, decay)
    if a.emit is not None:
        y = _tokens(y, a.emit)
    if a.D is not None:
        y = y + a.D * skip * a.paths
    return y if a.z is None else y * F.silu(a.z)


def _along(orders: Tensor, a: ScanArguments, dt: Tensor, decay: Tensor) -> Tensor:
    """Return the sum (b, L, D) of what the directions give; they run side by side, as groups that share Δ and C."""
    batch, length, channels = a.u.shape
    index = orders.expand(batch, -1, -1).transpose(1, 2).reshape(batch, length * a.paths, 1).expand(-1, -1, channels)
    visited = a.u.gather(1, index).view(batch, length, a.paths, channels)
    B = a.B if a.B_orders is None else a.B + a.B_orders.transpose(1, 2)
    drive, B = dt[:, :, None] * visited, B.expand(-1, -1, a.paths, -1)
    y = _loop(drive, decay[:, :, None], a.A[None], B, a.C, [0])
    y = y.reshape(batch, length * a.paths, channels)
    return torch.zeros_like(a.u).scatter_add(1, index, y)


def _loop(drive: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: list[int]) -> Tensor:
    """Run the recurrence for groups side by side.

    Args:
        drive: (b, L, G, w) Δ u.
        decay: (b, L, G or 1, w) what A is multiplied by.
        A: (G or 1, w, N).
        B, C: (b, L, G, N); C may be (b, L, 1, N).
        reverse: for each group, or for all, whether it runs from the last position to the first.

    Returns:
        C h, (b, L, G · w).
    """
    batch, _, groups, width = drive.shape

    def turned(x: Tensor) -> Tensor:
        if not any(reverse):
            return x
        if all(reverse):
            return x.flip(1)
        return torch.stack([x[:, :, g].flip(1) if back else x[:, :, g] for g, back in enumerate(reverse)], 2)

    def step(state: Tensor, drive: Tensor, decay: Tensor, B: Tensor, C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.exp(decay[..., None] * A) * state + drive[..., None] * B[..., None, :]
        return state, (state * C[..., None, :]).sum(-1)

    first = drive.new_zeros(batch, groups, width, A.shape[-1])
    steps = [turned(x).movedim(1, 0).contiguous() for x in (drive, decay, B, C)]
    # The operator itself: torch's function around it would compile the body anew for each block.
    _, y = torch.ops.higher_order.scan(step, [first], steps, (A,))
    return turned(y.movedim(0, 1)).flatten(2)


def _grouped(x: Tensor, like: Tensor) -> Tensor:
    """Turn (b, L, D) into (b, L, G, D / G)."""
    return x.reshape(*x.shape[:2], like.shape[2], -1)


def _tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of x (b, L, D) at the positions `index` (b, K)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
