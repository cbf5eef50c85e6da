"""The selective scan on a GPU: the launches of the kernels in `triton_kernels.py`, forwards and backwards."""

# mypy: allow-untyped-calls

from typing import Any, TypeVar

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from ssm_models.scan import triton_kernels as kernels

T = TypeVar("T", Tensor, Tensor | None)
CHUNK = 4  # steps between two stored states; a chunk's states fill a lane's registers
ROWS = 8  # rows of the output that the last loop with `orders` takes at a time


def _rows(x: T) -> T:
    """Return x with its last axis contiguous: itself, but for odd layouts."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _stride(x: Tensor | None, axis: int) -> int:
    """Return the stride of x; over the batch 0 where all images share one row."""
    return 0 if x is None or x.shape[axis] == 1 else x.stride(axis)


def _unit(x: Tensor) -> int:
    """Return how many elements of a row of x (b, L, G, N) one load can take."""
    unit = 16 // x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(stride % unit == 0 for stride in x.stride()[:-1])
    return unit if aligned else 1


def _slots(emit: Tensor, length: int) -> Tensor:
    """Return the row of the output that each token gives (b, length), or -1."""
    rows = torch.arange(emit.shape[1], device=emit.device).expand(emit.shape)
    return emit.new_full((emit.shape[0], length), -1).scatter_(1, emit, rows)


def _lanes(programs_of_one: int, width: int, states: int, device: torch.device) -> int:
    """Return the channels of a forward program, given the programs there would be with one channel each.

    A lane a channel as long as that fills the GPU; below, a channel's states are spread over more lanes.
    """
    lanes: int = min(max(512 // states, 32), 128, triton.next_power_of_2(width))
    while lanes > 4 and lanes * states > 1024:
        lanes //= 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    while lanes > 8 and programs_of_one // lanes < 4 * processors:
        lanes //= 2
    return lanes


def _tile(width: int, directions: int, states: int) -> tuple[int, int]:
    """Return over how many lanes the channels of a backward program lie, and how many each of them owns.

    16 states a lane, of which up to four lanes share a channel: a chunk of them then fits the registers.
    """
    lanes = max(1, min(32 // min(4, states), 512 // (directions * states), triton.next_power_of_2(width)))
    each = min(4, 512 // (lanes * directions * states), triton.next_power_of_2(triton.cdiv(width, lanes)))
    return lanes, max(1, each)


def _common(
    u: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, gap: Tensor | None, emit: Tensor | None,
    orders: Tensor | None, B_orders: Tensor | None, softplus: bool, reverse: list[int],
) -> dict[str, Any]:  # fmt: skip
    """Return what both kernels are told, by the names of their arguments."""
    if len(reverse) > 31:
        raise ValueError(f"selective_scan: {len(reverse)} groups; the triton backend takes up to 31")
    u, B, C, gap = _rows(u), _rows(B), _rows(C), _rows(gap)
    D, orders, B_orders = (x if x is None else x.contiguous() for x in (D, orders, B_orders))
    directions, states = 1 if orders is None else orders.shape[1], A.shape[1]
    B_unit, C_unit = _unit(B), _unit(C)
    return {
        "u": u, "A": A, "B": B, "C": C, "D": D, "gap": gap, "orders": orders, "B_orders": B_orders,
        "A_d": A.stride(0), "A_n": A.stride(1), "one": 1,
        "u_b": u.stride(0), "u_l": u.stride(1), "gap_b": _stride(gap, 0), "gap_l": _stride(gap, 1),
        "B_b": B.stride(0) // B_unit, "B_l": B.stride(1) // B_unit, "B_g": B.stride(2) // B_unit, "B_UNIT": B_unit,
        "C_b": C.stride(0) // C_unit, "C_l": C.stride(1) // C_unit, "C_g": C.stride(2) // C_unit, "C_UNIT": C_unit,
        "orders_b": _stride(orders, 0), "B_orders_b": _stride(B_orders, 0),
        "length": u.shape[1], "emits": u.shape[1] if emit is None else emit.shape[1],
        "groups": len(reverse), "width": u.shape[2] // len(reverse),
        "reverse": sum(int(flag) << g for g, flag in enumerate(reverse)),
        "SOFTPLUS": softplus, "P": directions, "N": states,
        "P_PAD": triton.next_power_of_2(directions), "N_PAD": triton.next_power_of_2(states), "CHUNK": CHUNK,
        "num_warps": 1, "enable_fp_fusion": True,
    }  # fmt: skip


def _run_scan(
    common: dict[str, Any], delta: Tensor, z: Tensor | None, bias: Tensor | None, emit: Tensor | None,
    slots: Tensor | None, **results: Tensor | None,
) -> None:  # fmt: skip
    delta, z = _rows(delta), _rows(z)
    batch, _, channels = delta.shape
    width, groups = common["width"], common["groups"]
    lanes = _lanes(batch * channels, width, common["P_PAD"] * common["N_PAD"], delta.device)
    blocks = triton.cdiv(width, lanes)
    with torch.cuda.device_of(delta):
        kernels.scan[(batch * groups * blocks,)](
            **common, **results, delta=delta, z=z, slots=slots,
            bias=None if bias is None else bias.contiguous(), emit=None if emit is None else emit.contiguous(),
            delta_b=delta.stride(0), delta_l=delta.stride(1), z_b=_stride(z, 0), z_l=_stride(z, 1),
            blocks=blocks, V=lanes, ROWS=ROWS,
        )  # fmt: skip


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, gap: Tensor | None, emit: Tensor | None, orders: Tensor | None,
    B_orders: Tensor | None, delta_softplus: bool, reverse: list[int],
) -> Tensor:  # fmt: skip
    """Scan with the states in float32; see `ssm_models.scan.ops` for the arguments. One launch."""
    common = _common(u, A, B, C, D, gap, emit, orders, B_orders, delta_softplus, reverse)
    out = u.new_empty((u.shape[0], common["emits"], u.shape[2]))
    if out.numel() == 0:
        return out
    slots = sums = None
    if orders is not None:
        sums = torch.zeros_like(out, dtype=torch.float32)
        slots = None if emit is None else _slots(emit, u.shape[1])
    _run_scan(
        common, delta, z, delta_bias, None if orders is not None else emit, slots,
        out=out, sums=sums, grad=None, dt_out=None, dz=None, gy=None, states=None,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, gap: Tensor | None, emit: Tensor | None, orders: Tensor | None,
    B_orders: Tensor | None, delta_softplus: bool, reverse: list[int],
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias, gap and B_orders; empty where absent."""
    none = u.new_empty(0)
    if grad.numel() == 0:
        tensors = (u, delta, A, B, C, D, z, delta_bias, gap, B_orders)
        return [none if x is None else torch.zeros_like(x) for x in tensors]
    common = _common(u, A, B, C, D, gap, emit, orders, B_orders, delta_softplus, reverse)
    batch, length, channels = u.shape
    states, directions, groups, width = common["N"], common["P"], common["groups"], common["width"]
    slots = None if emit is None else _slots(emit, length)
    grad = grad.contiguous()

    def empty(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=torch.float32)

    gated = z is not None
    dt = empty(batch, length, channels)
    stored = empty(batch, triton.cdiv(length, CHUNK), directions, states, channels)
    gy = torch.empty_like(grad, dtype=torch.float32) if gated else grad
    dz = torch.empty_like(grad) if gated else none
    sums = torch.zeros_like(grad, dtype=torch.float32) if gated and orders is not None else None
    _run_scan(
        common, delta, z, delta_bias, None if orders is not None else emit, None if orders is None else slots,
        out=None, sums=sums, grad=grad, dt_out=dt, dz=dz, gy=gy, states=stored,
    )  # fmt: skip

    lanes, each = _tile(width, common["P_PAD"], common["N_PAD"])
    each = each if orders is None else 1
    blocks = triton.cdiv(width, lanes * each)
    du = torch.empty_like(u, memory_format=torch.contiguous_format) if orders is None else torch.zeros_like(dt)
    ddelta = torch.empty_like(delta, memory_format=torch.contiguous_format)
    dgap = none if gap is None else torch.empty_like(gap, memory_format=torch.contiguous_format)
    dA, dD, dbias = empty(batch, states, channels), empty(batch, channels), empty(batch, channels)
    paths = 1 if B_orders is None else directions
    dB = empty(batch, groups, blocks, paths, length, states)
    dC = empty(batch, groups, blocks, C.shape[1], states)
    with torch.cuda.device_of(u):
        kernels.reverse_scan[(batch * groups * blocks,)](
            **common, dts=dt, slots=slots, gy=gy, states=stored,
            du=du, ddelta=ddelta, dgap=dgap, dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias,
            blocks=blocks, R=each, V=lanes,
        )  # fmt: skip
    dB = dB.sum(2)
    dB_orders = none if B_orders is None else dB[:, 0].sum_to_size(B_orders.shape)
    return [
        du, ddelta, dA.sum(0).t(), dB.sum(2).movedim(1, 2), dC.sum(2).movedim(1, 2),
        none if D is None else dD.sum(0), dz, none if delta_bias is None else dbias.sum(0), dgap, dB_orders,
    ]  # fmt: skip
