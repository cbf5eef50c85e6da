"""The selective scan on a GPU: Triton kernels that keep the states of a block of channels in registers.

A program is one image, one group (a scan direction) and one block of its channels, and runs as a single
warp. Forwards a lane owns a channel with all its states where there are enough channels to fill the GPU, so
the sum over the states stays in the lane and nothing in the loop waits for another. The inputs of a step are
loaded while the step before it is computed, and nothing of size L × D × N is stored. What bounds it is one
exponential a state and step, more than memory does; with `orders` the directions share it.

Backwards, `_scan` runs again and leaves the state before every CHUNK-th step, Δ, and the gradient of the
output before the gate; `_reverse` then walks the chunks from the last to the first, recomputes the states
inside a chunk and keeps them in registers. Sums over channels or images (A, B, C, D, B_orders, delta_bias)
are written as one partial sum a program and added up by torch, not with atomics: two runs give the same bits.
With `orders` the directions meet at a token in different steps, so the output and the gradient of u are added
up in memory with atomics; each address belongs to one program, which visits it in a fixed order.
"""

# Kernels are Triton's language, not Python: mypy checks the functions around them.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from typing import Any, TypeVar

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

T = TypeVar("T", Tensor, Tensor | None)
LOG2E = tl.constexpr(1.4426950408889634)
CHUNK = 4  # steps between two stored states; a chunk's states fill a lane's registers
# Arguments whose values the compiler must not look at. Lengths: a kernel for each of their divisors would be
# compiled anew for every pruned length. The strides of A and of the states (`one`): if it knew that a row is
# contiguous, it would lay the states out as they are loaded, and shuffle all of them in every step.
VARYING = ["length", "emits", "reverse", "orders_b", "B_orders_b", "B_b", "C_b", "A_d", "A_n", "one"]
ROWS = 8  # rows of the output that the last loop with `orders` takes at a time


@triton.jit
def _softplus(x):
    """Return log(1 + e**x): max(x, 0) + 2 artanh(s) with s = e / (2 + e), e = e**-|x|.

    As the CPU's backend computes it: log(1 + e) would lose a small e, and a maximum would swallow a NaN.
    """
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    p = 1.0 / 15.0
    p = p * q + 1.0 / 13.0
    p = p * q + 1.0 / 11.0
    p = p * q + 1.0 / 9.0
    p = p * q + 1.0 / 7.0
    p = p * q + 1.0 / 5.0
    p = p * q + 1.0 / 3.0
    p = p * q + 1.0
    return tl.where(x > 0.0, x, 0.0) + 2.0 * s * p


@triton.jit
def _one_minus_exp(x):
    """Return 1 - e**-x for x >= 0, exact for a small x too."""
    series = x * (1.0 - x / 2.0 * (1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0))))
    return tl.where(x < 0.1, series, 1.0 - tl.exp(-x))


@triton.jit
def _live(step, length):
    """Return whether there is such a step (1,). Not a scalar: the interpreter cannot broadcast a scalar mask."""
    return tl.full([1], step, tl.int32) < length


@triton.jit
def _tokens(orders, p, t, length, live, P: tl.constexpr):
    """Return the token that each direction visits at position t (directions,)."""
    token = tl.zeros_like(p).to(tl.int64) + t
    if orders is not None:
        token = tl.load(orders + p * length + t, mask=(p < P) & live, other=0)
    return token


@triton.jit
def _b_of_step(B, B_l, B_orders, n, p, t, length, live, N: tl.constexpr, P: tl.constexpr):
    """Return B of step t (N,) and what the directions add to it (directions, N), as they are stored."""
    b = tl.load(B + t * B_l + n, mask=(n < N) & live, other=0.0)
    added = b
    if B_orders is not None:
        mask = (p < P)[:, None] & (n < N)[None, :] & live
        added = tl.load(B_orders + (p * length + t)[:, None] * N + n[None, :], mask=mask, other=0.0)
    return b, added


@triton.jit
def _add_b(b, added, B_orders):
    """Return B of each direction in float32 (directions, N); one row for all where they add nothing."""
    b = b.to(tl.float32)[None, :]
    if B_orders is not None:
        b += added.to(tl.float32)
    return b


@triton.jit
def _load_step(
    u, delta, gap, B, B_orders, u_l, delta_l, gap_l, B_l,
    p, token, t, d, inside, n, length, live, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Load the inputs of step t, to be converted only when they are used."""
    here = inside & live
    x = tl.load(u + token[:, None] * u_l + d[None, :], mask=(p < P)[:, None] & here[None, :], other=0.0)
    dt = tl.load(delta + t * delta_l + d, mask=here, other=0.0)
    held = dt
    if gap is not None:
        held = tl.load(gap + t * gap_l + d, mask=here, other=0.0)
    b, added = _b_of_step(B, B_l, B_orders, n, p, t, length, live, N, P)
    return x, dt, held, b, added


@triton.jit
def _inputs(
    u, dts, gap, B, B_orders, u_l, gap_l, B_l, q, token, t, d, visits, here, n, length, channels, live,
    N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Return u, Δ, the exponent's Δ and B of step t in float32, for `_reverse`."""
    x = tl.load(u + token[:, None] * u_l + d, mask=visits, other=0.0).to(tl.float32)
    dt = tl.load(dts + t * channels + d, mask=here, other=0.0)
    exponent = dt
    if gap is not None:
        exponent += tl.load(gap + t * gap_l + d, mask=here, other=0.0).to(tl.float32)
    b, added = _b_of_step(B, B_l, B_orders, n, q, t, length, live, N, P)
    return x, dt, exponent, _add_b(b, added, B_orders)


@triton.jit
def _read(h, x, skip, C, C_l, row, n, N: tl.constexpr):
    """Return C h + D u (directions, channels)."""
    c = tl.load(C + row * C_l + n, mask=n < N, other=0.0).to(tl.float32)
    return tl.sum(h * c[None, :, None], axis=1) + skip[None, :] * x


@triton.jit
def _finish(y, rows, mask, d, channels, z, z_l, out, grad, dz, gy):
    """Gate the rows y (rows, channels) and store them; where `grad` is given, dz and the gradient of y."""
    at = rows[:, None] * channels + d[None, :]
    if z is not None:
        gate = tl.load(z + rows[:, None] * z_l + d[None, :], mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        if grad is None:
            y = y * gate * sigmoid
        else:
            upstream = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
            tl.store(dz + at, upstream * y * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask=mask)
            tl.store(gy + at, upstream * gate * sigmoid, mask=mask)
    if grad is None:
        tl.store(out + at, y, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def _scan(
    u, delta, A, B, C, D, z, bias, gap, emit, slots, orders, B_orders,
    out, sums, grad, dt_out, dz, gy, states,
    A_d, A_n, one, u_b, u_l, delta_b, delta_l, z_b, z_l, gap_b, gap_l, B_b, B_l, B_g, C_b, C_l, C_g,
    orders_b, B_orders_b, length, emits, blocks, groups, width, reverse,
    SOFTPLUS: tl.constexpr, B_UNIT: tl.constexpr, C_UNIT: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    P_PAD: tl.constexpr, N_PAD: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write `out`, or, where `grad` is given, what `_reverse` needs. States are (directions, N, channels)."""
    program = tl.program_id(0)
    block, group = program % blocks, program // blocks % groups
    image = (program // (blocks * groups)).to(tl.int64)
    channels = width * groups
    v = block * V + tl.arange(0, V)
    inside, d = v < width, group * width + v
    n, p = tl.arange(0, N_PAD), tl.arange(0, P_PAD)
    backwards = ((reverse >> group) & 1).to(tl.int64)
    first, sign = backwards * (length - 1), 1 - 2 * backwards
    # Strides in units that their alignment allows: the compiler then sees that rows can be read as vectors.
    B_l, C_l = B_l * B_UNIT, C_l * C_UNIT
    u += image * u_b
    delta += image * delta_b
    B += (image * B_b + group * B_g) * B_UNIT
    C += (image * C_b + group * C_g) * C_UNIT
    if z is not None:
        z += image * z_b
    if gap is not None:
        gap += image * gap_b
    if orders is not None:
        orders += image * orders_b
    if B_orders is not None:
        B_orders += image * B_orders_b
    if slots is not None:
        slots += image * length
    if sums is not None:
        sums += image * emits * channels
    if grad is None:
        out += image * emits * channels
    else:
        grad += image * emits * channels
        if z is not None:
            dz += image * emits * channels
            gy += image * emits * channels

    a = tl.load(A + d[None, :] * A_d + n[:, None] * A_n, mask=inside[None, :] & (n < N)[:, None], other=0.0)
    a = a.to(tl.float32) * LOG2E
    skip, shift = tl.zeros([V], tl.float32), tl.zeros([V], tl.float32)
    if D is not None:
        skip += tl.load(D + d, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        shift += tl.load(bias + d, mask=inside, other=0.0).to(tl.float32)
    h = tl.zeros([P_PAD, N_PAD, V], tl.float32)
    row = first  # of the next output, and the position that gives it
    target = first
    if emit is not None:
        emit += image * emits
        row = backwards * (emits - 1)
        target = tl.load(emit + row)

    # Inputs are loaded one step ahead, and the tokens that say where two steps ahead.
    token = _tokens(orders, p, first, length, _live(0, length), P)
    following = _tokens(orders, p, first + sign, length, _live(1, length), P)
    x_next, dt_next, held_next, b_next, added_next = _load_step(
        u, delta, gap, B, B_orders, u_l, delta_l, gap_l, B_l,
        p, token, first, d, inside, n, length, _live(0, length), N, P,
    )  # fmt: skip
    for step in range(length):
        t = first + sign * step
        x, dt, held, b = x_next.to(tl.float32), dt_next, held_next, _add_b(b_next, added_next, B_orders)
        here = token
        token = following
        following = _tokens(orders, p, t + 2 * sign, length, _live(step + 2, length), P)
        x_next, dt_next, held_next, b_next, added_next = _load_step(
            u, delta, gap, B, B_orders, u_l, delta_l, gap_l, B_l,
            p, token, t + sign, d, inside, n, length, _live(step + 1, length), N, P,
        )  # fmt: skip
        dt = dt.to(tl.float32) + shift
        if SOFTPLUS:
            dt = _softplus(dt)
        exponent = dt
        if gap is not None:
            exponent += held.to(tl.float32)
        if states is not None:
            tl.store(dt_out + (image * length + t) * channels + d, dt, mask=inside)
            if step % CHUNK == 0:
                chunk = image * tl.cdiv(length, CHUNK) + step // CHUNK
                at = p[:, None, None] * (N * channels) + n[None, :, None] * channels + d[None, None, :] * one
                mask = (p < P)[:, None, None] & (n < N)[None, :, None] & inside[None, None, :]
                tl.store(states + chunk * (P * N * channels) + at, h, mask=mask)
        h = tl.exp2(exponent[None, :] * a)[None, :, :] * h + (dt[None, :] * x)[:, None, :] * b[:, :, None]

        if grad is None or z is not None:
            if orders is not None:
                slot = here
                if slots is not None:
                    slot = tl.load(slots + here, mask=p < P, other=-1)
                mask = ((p < P) & (slot >= 0))[:, None] & inside[None, :]
                y = _read(h, x, skip, C, C_l, t, n, N)
                tl.atomic_add(sums + slot[:, None] * channels + d[None, :], y, mask=mask, sem="relaxed")
            elif emit is None:
                y = _read(h, x, skip, C, C_l, t, n, N)
                _finish(y, here, inside[None, :], d, channels, z, z_l, out, grad, dz, gy)
            elif t == target:
                y = _read(h, x, skip, C, C_l, row, n, N)
                rows = tl.zeros_like(p).to(tl.int64) + row
                _finish(y, rows, inside[None, :], d, channels, z, z_l, out, grad, dz, gy)
                row += sign
                target = tl.load(emit + row, mask=(row >= 0) & (row < emits), other=-1)

    if sums is not None:
        tl.debug_barrier()  # other lanes may have added what this one reads
        for start in range(0, emits, ROWS):
            rows = tl.zeros([ROWS], tl.int64) + start + tl.arange(0, ROWS)
            mask = (rows < emits)[:, None] & inside[None, :]
            at = rows[:, None] * channels + d[None, :]
            y = tl.load(sums + at, mask=mask, other=0.0, cache_modifier=".cg")  # where atomics leave their sums
            _finish(y, rows, mask, d, channels, z, z_l, out, grad, dz, gy)


@triton.jit
def _over_directions(x, orders):
    """Sum x (Q, …) over the directions; without `orders` the first axis holds channels and stays."""
    if orders is not None:
        x = tl.sum(x, axis=0, keep_dims=True)
    return x


@triton.jit(do_not_specialize=VARYING)
def _reverse(
    u, dts, A, B, C, D, gap, slots, orders, B_orders, gy, states,
    du, ddelta, dgap, dA, dB, dC, dD, dbias,
    A_d, A_n, one, u_b, u_l, gap_b, gap_l, B_b, B_l, B_g, C_b, C_l, C_g,
    orders_b, B_orders_b, length, emits, blocks, groups, width, reverse,
    SOFTPLUS: tl.constexpr, B_UNIT: tl.constexpr, C_UNIT: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    P_PAD: tl.constexpr, N_PAD: tl.constexpr, R: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the gradients, those that are summed over channels or images as one partial sum a program.

    States are (Q, N, V), channels (R, V): a lane owns R channels and a part of their states, for sums over
    the lanes' channels cost shuffles and those over R do not. Q is R, or with `orders` the directions, R = 1.
    """
    Q: tl.constexpr = R if orders is None else P_PAD
    program = tl.program_id(0)
    block, group = program % blocks, program // blocks % groups
    image = (program // (blocks * groups)).to(tl.int64)
    channels = width * groups
    v = block * (R * V) + tl.arange(0, R)[:, None] * V + tl.arange(0, V)[None, :]
    inside, d = v < width, group * width + v
    n, q = tl.arange(0, N_PAD), tl.arange(0, Q)
    backwards = ((reverse >> group) & 1).to(tl.int64)
    first, sign = backwards * (length - 1), 1 - 2 * backwards
    B_l, C_l = B_l * B_UNIT, C_l * C_UNIT
    u += image * u_b
    du += image * length * channels
    dts += image * length * channels
    ddelta += image * length * channels
    gy += image * emits * channels
    B += (image * B_b + group * B_g) * B_UNIT
    C += (image * C_b + group * C_g) * C_UNIT
    if gap is not None:
        gap += image * gap_b
        dgap += image * length * channels
    if slots is not None:
        slots += image * length
    if orders is not None:
        orders += image * orders_b
    if B_orders is not None:
        B_orders += image * B_orders_b
    part = (image * groups + group) * blocks + block
    outputs = emits
    if orders is not None:
        outputs = length
    dC += part * outputs * N
    if B_orders is None:
        dB += part * length * N
    else:
        dB += part * P * length * N

    mask_a = inside[:, None, :] & (n < N)[None, :, None]
    a = tl.load(A + d[:, None, :] * A_d + n[None, :, None] * A_n, mask=mask_a, other=0.0).to(tl.float32) * LOG2E
    skip = tl.zeros([R, V], tl.float32)
    if D is not None:
        skip += tl.load(D + d, mask=inside, other=0.0).to(tl.float32)
    # Without orders q counts channels and P is 1: then no q is masked.
    walks = (q < P)[:, None] if orders is not None else (q >= 0)[:, None]
    gh = tl.zeros([Q, N_PAD, V], tl.float32)
    ga = tl.zeros([R, N_PAD, V], tl.float32)
    gskip, gshift = tl.zeros([R, V], tl.float32), tl.zeros([R, V], tl.float32)

    chunks = tl.cdiv(length, CHUNK)
    for index in range(chunks):
        chunk = chunks - 1 - index
        start = chunk * CHUNK
        at = d[:, None, :] * one + n[None, :, None] * channels
        if orders is not None:
            at += q[:, None, None] * (N * channels)
        h = tl.load(
            states + (image * chunks + chunk) * (P * N * channels) + at, mask=walks[:, :, None] & mask_a, other=0.0
        )
        hs = (h,)  # before and after each step of the chunk
        for k in tl.static_range(CHUNK):
            live = _live(start + k, length)
            t = first + sign * (start + k)
            token = _tokens(orders, q, t, length, live, P)
            x, dt, exponent, b = _inputs(
                u, dts, gap, B, B_orders, u_l, gap_l, B_l, q, token, t, d, walks & inside & live, inside & live,
                n, length, channels, live, N, P,
            )  # fmt: skip
            h = tl.exp2(exponent[:, None, :] * a) * h + (dt * x)[:, None, :] * b[:, :, None]
            hs = hs + (h,)  # type: ignore[assignment]  # noqa: RUF005 (not in Triton's language)
        for back in tl.static_range(CHUNK):
            step = start + CHUNK - 1 - back
            live = _live(step, length)
            t = first + sign * step
            token = _tokens(orders, q, t, length, live, P)
            here, visits = inside & live, walks & inside & live
            x, dt, exponent, b = _inputs(
                u, dts, gap, B, B_orders, u_l, gap_l, B_l, q, token, t, d, visits, here,
                n, length, channels, live, N, P,
            )  # fmt: skip
            row = tl.zeros([1], tl.int64) + t
            slot = token
            if slots is not None:
                if orders is None:
                    row = tl.load(slots + row, mask=live, other=-1)
                    slot = tl.zeros_like(q) + row
                else:
                    slot = tl.load(slots + token, mask=(q < P) & live, other=-1)
            gives = live & (row >= 0)
            c = tl.load(C + row * C_l + n, mask=(n < N) & gives, other=0.0).to(tl.float32)
            upstream = tl.load(
                gy + slot[:, None] * channels + d, mask=visits & (slot >= 0)[:, None], other=0.0
            ).to(tl.float32)  # fmt: skip

            gh += upstream[:, None, :] * c[None, :, None]
            gc = tl.sum(tl.sum(upstream[:, None, :] * hs[CHUNK - back], axis=0), axis=1)
            tl.store(dC + row * N + n, gc, mask=(n < N) & gives)
            decay = tl.exp2(exponent[:, None, :] * a)
            gp = _over_directions(gh * hs[CHUNK - 1 - back] * decay, orders)  # of the exponent Δ A
            ga += gp * exponent[:, None, :]
            gexponent = tl.sum(gp * a, axis=1) / LOG2E
            gdrive = tl.sum(gh * b[:, :, None], axis=1)
            gb = gh * (dt * x)[:, None, :]
            if B_orders is None:
                tl.store(dB + t * N + n, tl.sum(tl.sum(gb, axis=0), axis=1), mask=(n < N) & live)
            else:
                rows = (q * length + t)[:, None] * N
                tl.store(dB + rows + n[None, :], tl.sum(gb, axis=2), mask=walks & (n < N)[None, :] & live)
            gh = gh * decay

            gx = gdrive * dt + upstream * skip
            if orders is None:
                tl.store(du + t * channels + d, gx, mask=here)
            else:
                tl.atomic_add(du + token[:, None] * channels + d, gx, mask=visits, sem="relaxed")
            gskip += _over_directions(upstream * x, orders)
            gdt = gexponent + _over_directions(gdrive * x, orders)
            if gap is not None:
                tl.store(dgap + t * channels + d, gexponent, mask=here)
            if SOFTPLUS:
                gdt *= _one_minus_exp(dt)
            tl.store(ddelta + t * channels + d, gdt, mask=here)
            gshift += gdt

    at = d[:, None, :] * one + n[None, :, None] * channels
    tl.store(dA + image * (N * channels) + at, ga, mask=mask_a)
    tl.store(dD + image * channels + d, gskip, mask=inside)
    tl.store(dbias + image * channels + d, gshift, mask=inside)


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
        _scan[(batch * groups * blocks,)](
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
        _reverse[(batch * groups * blocks,)](
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
