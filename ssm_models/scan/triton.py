"""The selective scan on a GPU: the launches of the kernels in `triton_kernels.py`, forwards and backwards."""

# mypy: allow-untyped-calls

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from ssm_models.scan import triton_kernels as kernels
from ssm_models.scan.arguments import ScanArguments, ScanGradients

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


def _common(a: ScanArguments) -> dict[str, Any]:
    """Return what both kernels are told, by the names of their parameters.

    Triton's kernels take pointers, strides and sizes one by one, so a launch has as many keywords: a structure would
    have to be unpacked again here.
    """
    if a.groups > 31:
        raise ValueError(f"selective_scan: {a.groups} groups; the triton backend takes up to 31")
    u, B, C, gap = _rows(a.u), _rows(a.B), _rows(a.C), _rows(a.gap)
    D, orders, B_orders = (x if x is None else x.contiguous() for x in (a.D, a.orders, a.B_orders))
    B_unit, C_unit = _unit(B), _unit(C)
    return {
        "u": u, "A": a.A, "B": B, "C": C, "D": D, "gap": gap, "orders": orders, "B_orders": B_orders,
        "A_d": a.A.stride(0), "A_n": a.A.stride(1), "one": 1,
        "u_b": u.stride(0), "u_l": u.stride(1), "gap_b": _stride(gap, 0), "gap_l": _stride(gap, 1),
        "B_b": B.stride(0) // B_unit, "B_l": B.stride(1) // B_unit, "B_g": B.stride(2) // B_unit, "B_UNIT": B_unit,
        "C_b": C.stride(0) // C_unit, "C_l": C.stride(1) // C_unit, "C_g": C.stride(2) // C_unit, "C_UNIT": C_unit,
        "orders_b": _stride(orders, 0), "B_orders_b": _stride(B_orders, 0),
        "length": u.shape[1], "emits": a.out_shape[1], "groups": a.groups, "width": u.shape[2] // a.groups,
        "reverse": sum(int(flag) << g for g, flag in enumerate(a.reverse)),
        "SOFTPLUS": a.delta_softplus, "P": a.paths, "N": a.states,
        "P_PAD": triton.next_power_of_2(a.paths), "N_PAD": triton.next_power_of_2(a.states), "CHUNK": CHUNK,
        "num_warps": 1, "enable_fp_fusion": True,
    }  # fmt: skip


@dataclass
class _Results:
    """What the forward kernel writes, by the names of its parameters; None is not written.

    Attributes:
        out: (b, K, D) the output; None in the backward pass.
        grad: (b, K, D) the gradient of the output, which is read; None in the forward pass.
        sums: (b, K, D) room for the sums over the directions, zero at first; with `orders` alone.
        dt_out: (b, L, D) Δ after the softplus.
        dz: (b, K, D) gradient of z.
        gy: (b, K, D) gradient of y before the gate.
        states: (b, chunks, P, N, D) the states before each chunk of steps.
    """

    out: Tensor | None = None
    grad: Tensor | None = None
    sums: Tensor | None = None
    dt_out: Tensor | None = None
    dz: Tensor | None = None
    gy: Tensor | None = None
    states: Tensor | None = None


def _run_scan(common: dict[str, Any], a: ScanArguments, slots: Tensor | None, results: _Results) -> None:
    """Launch the forward kernel. Of the outputs it takes `slots` (see `_slots`) with `orders`, else `emit`."""
    delta, z = _rows(a.delta), _rows(a.z)
    emit = None
    if a.orders is None:
        emit, slots = None if a.emit is None else a.emit.contiguous(), None
    batch, _, channels = delta.shape
    width, groups = common["width"], common["groups"]
    lanes = _lanes(batch * channels, width, common["P_PAD"] * common["N_PAD"], delta.device)
    blocks = triton.cdiv(width, lanes)
    with torch.cuda.device_of(delta):
        kernels.scan[(batch * groups * blocks,)](
            **common, **vars(results), delta=delta, z=z, emit=emit, slots=slots,
            bias=None if a.delta_bias is None else a.delta_bias.contiguous(),
            delta_b=delta.stride(0), delta_l=delta.stride(1), z_b=_stride(z, 0), z_l=_stride(z, 1),
            blocks=blocks, V=lanes, ROWS=ROWS,
        )  # fmt: skip


def forward(arguments: ScanArguments) -> Tensor:
    """Scan with the states in float32, in one launch; return (b, K, D)."""
    a, common = arguments, _common(arguments)
    out = a.u.new_empty(a.out_shape)
    if out.numel() == 0:
        return out
    if a.orders is None:
        slots = sums = None
    else:
        slots = None if a.emit is None else _slots(a.emit, a.u.shape[1])
        sums = torch.zeros_like(out, dtype=torch.float32)
    _run_scan(common, a, slots, _Results(out=out, sums=sums))
    return out


def backward(grad: Tensor, arguments: ScanArguments) -> ScanGradients:
    """Return the gradients of all inputs, given that of the output (b, K, D)."""
    if grad.numel() == 0:
        return ScanGradients.zeros(arguments)
    a, common = arguments, _common(arguments)
    slots = None if a.emit is None else _slots(a.emit, a.u.shape[1])
    saved = _scan_again(common, a, slots, grad.contiguous())
    return _reverse_scan(common, a, slots, saved)


def _scan_again(common: dict[str, Any], a: ScanArguments, slots: Tensor | None, grad: Tensor) -> _Results:
    """Scan forwards again for what the reverse scan needs; return it with the gradient of z."""
    batch, length, channels = a.u.shape
    gated = a.z is not None
    results = _Results(
        grad=grad,
        sums=torch.zeros_like(grad, dtype=torch.float32) if gated and a.orders is not None else None,
        dt_out=_empty(a, batch, length, channels),
        dz=torch.empty_like(grad) if gated else a.u.new_empty(0),
        gy=torch.empty_like(grad, dtype=torch.float32) if gated else grad,
        states=_empty(a, batch, triton.cdiv(length, CHUNK), a.paths, a.states, channels),
    )
    _run_scan(common, a, slots, results)
    return results


def _reverse_scan(common: dict[str, Any], a: ScanArguments, slots: Tensor | None, saved: _Results) -> ScanGradients:
    """Launch the backward kernel, and add up its partial sums."""
    batch, length, channels = a.u.shape
    groups, width = common["groups"], common["width"]
    lanes, each = _tile(width, common["P_PAD"], common["N_PAD"])
    each = each if a.orders is None else 1
    blocks = triton.cdiv(width, lanes * each)
    if a.orders is None:
        du = torch.empty_like(a.u, memory_format=torch.contiguous_format)
    else:  # directions add to it
        du = a.u.new_zeros(a.u.shape, dtype=torch.float32)
    ddelta = torch.empty_like(a.delta, memory_format=torch.contiguous_format)
    dgap = a.u.new_empty(0) if a.gap is None else torch.empty_like(a.gap, memory_format=torch.contiguous_format)
    dA, dD, dbias = _empty(a, batch, a.states, channels), _empty(a, batch, channels), _empty(a, batch, channels)
    dB = _empty(a, batch, groups, blocks, 1 if a.B_orders is None else a.paths, length, a.states)
    dC = _empty(a, batch, groups, blocks, a.C.shape[1], a.states)
    with torch.cuda.device_of(a.u):
        kernels.reverse_scan[(batch * groups * blocks,)](
            **common, dts=saved.dt_out, gy=saved.gy, states=saved.states, slots=slots,
            du=du, ddelta=ddelta, dgap=dgap, dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias,
            blocks=blocks, R=each, V=lanes,
        )  # fmt: skip
    dB = dB.sum(2)
    return ScanGradients(
        u=du,
        delta=ddelta,
        A=dA.sum(0).t(),
        B=dB.sum(2).movedim(1, 2),
        C=dC.sum(2).movedim(1, 2),
        D=None if a.D is None else dD.sum(0),
        z=None if a.z is None else saved.dz,
        delta_bias=None if a.delta_bias is None else dbias.sum(0),
        gap=None if a.gap is None else dgap,
        B_orders=None if a.B_orders is None else dB[:, 0].sum_to_size(a.B_orders.shape),
    )


def _empty(a: ScanArguments, *shape: int) -> Tensor:
    return a.u.new_empty(shape, dtype=torch.float32)
