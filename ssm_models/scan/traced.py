"""The selective scan as `torch.export` traces it: one loop over positions, whose body stands in the graph once.

An exported model has to run where nobody knows our operator. Unrolled, the reference would give a graph that grows
with the number of tokens; as a higher-order `scan` it is the same few nodes for any number, and ONNX has the same
loop, `Scan`. It takes the reference's operations in the reference's order.
"""

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
    """Scan with a loop that stays one; see `ssm_models.scan.ops` for the arguments."""
    dt = delta if delta_bias is None else delta + delta_bias
    dt = F.softplus(dt) if delta_softplus else dt
    skip = u if emit is None else _tokens(u, emit)
    decay = dt if gap is None else dt + gap
    if orders is None:
        if emit is not None:  # a step that gives no output reads nothing
            C = C.new_zeros(B.shape).scatter(1, emit[:, :, None, None].expand(-1, -1, *C.shape[2:]), C)
        y = _loop(_grouped(dt * u, B), _grouped(decay, B), _grouped_states(A, B), B, C, reverse)
    else:
        y = _along(orders, u, dt, decay, A, B if B_orders is None else B + B_orders.transpose(1, 2), C)
    if emit is not None:
        y = _tokens(y, emit)
    if D is not None:
        y = y + D * skip * (1 if orders is None else orders.shape[1])
    return y if z is None else y * F.silu(z)


def _along(orders: Tensor, u: Tensor, dt: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Return the sum (b, L, D) of what the directions give; they run side by side, as groups that share Δ and C."""
    batch, length, channels = u.shape
    walks = orders.expand(batch, -1, -1)
    paths = walks.shape[1]
    index = walks.transpose(1, 2).reshape(batch, length * paths, 1).expand(-1, -1, channels)
    visited = u.gather(1, index).view(batch, length, paths, channels)
    drive, B = dt[:, :, None] * visited, B.expand(-1, -1, paths, -1)
    y = _loop(drive, decay[:, :, None], A[None], B, C, [0])
    y = y.reshape(batch, length * paths, channels)
    return torch.zeros_like(u).scatter_add(1, index, y)


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


def _grouped_states(A: Tensor, like: Tensor) -> Tensor:
    """Turn (D, N) into (G, D / G, N)."""
    return A.reshape(like.shape[2], -1, A.shape[1])


def _tokens(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of x (b, L, D) at the positions `index` (b, K)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
