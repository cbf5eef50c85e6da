"""The Triton kernels of the GPU scan, which keep the states of a block of channels in registers.

The kernels are long functions with many parameters because Triton passes pointers, strides and sizes one by one, and
because splitting a loop would spill its registers.

A program is one image, one group (a scan direction) and one block of its channels, and runs as a single
warp. Forwards a lane owns a channel with all its states where there are enough channels to fill the GPU, so
the sum over the states stays in the lane and nothing in the loop waits for another. The inputs of a step are
loaded while the step before it is computed, and nothing of size L × D × N is stored. What bounds it is one
exponential a state and step, more than memory does; with `orders` the directions share it.

Backwards, `scan` runs again and leaves the state before every CHUNK-th step, Δ, and the gradient of the
output before the gate; `reverse_scan` then walks the chunks from the last to the first, recomputes the states
inside a chunk and keeps them in registers. Sums over channels or images (A, B, C, D, B_orders, delta_bias)
are written as one partial sum a program and added up by torch, not with atomics: two runs give the same bits.
With `orders` the directions meet at a token in different steps, so the output and the gradient of u are added
up in memory with atomics; each address belongs to one program, which visits it in a fixed order.
"""

# Triton's language, not Python: mypy checks what launches it.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

LOG2E = tl.constexpr(1.4426950408889634)
# Arguments whose values the compiler must not look at. Lengths: a kernel for each of their divisors would be
# compiled anew for every pruned length. The strides of A and of the states (`one`): if it knew that a row is
# contiguous, it would lay the states out as they are loaded, and shuffle all of them in every step.
VARYING = ["length", "emits", "reverse", "orders_b", "B_orders_b", "B_b", "C_b", "A_d", "A_n", "one"]


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
    """Return u, Δ, the exponent's Δ and B of step t in float32, for `reverse_scan`."""
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
def scan(
    u, delta, A, B, C, D, z, bias, gap, emit, slots, orders, B_orders,
    out, sums, grad, dt_out, dz, gy, states,
    A_d, A_n, one, u_b, u_l, delta_b, delta_l, z_b, z_l, gap_b, gap_l, B_b, B_l, B_g, C_b, C_l, C_g,
    orders_b, B_orders_b, length, emits, blocks, groups, width, reverse,
    SOFTPLUS: tl.constexpr, B_UNIT: tl.constexpr, C_UNIT: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    P_PAD: tl.constexpr, N_PAD: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write `out`, or, where `grad` is given, what `reverse_scan` needs. States are (directions, N, channels)."""
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
def reverse_scan(
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
