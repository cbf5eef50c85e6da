"""The selective scan on the CPU: Numba kernels that keep a block of channels' states in cache.

A work item is one image, one group of channels (a scan direction) and one tile of `LANES` of its
channels. The tile's states are an (N, LANES) array, so that the inner loops run over contiguous
channels and vectorise. Nothing of size L × D × N is stored in the forward pass; the backward pass
stores the states of one tile at a time. The kernels release the GIL, and as many threads share the
items as torch is set to use.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import float32, int32, njit, types
from numba.extending import intrinsic, register_jitable
from torch import Tensor

LANES = 32

# Not `nnan` or `ninf`: a NaN in a model's activations must reach whoever looks for it.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_jit: Any = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
_intrinsic: Any = intrinsic
_inline: Any = register_jitable(fastmath=_FAST, error_model="numpy")


@_intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """Reinterpret an int32 as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@_inline  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """Return e**x in float32, without the libm call that would keep LLVM from vectorising.

    Cody-Waite reduction to |r| <= ln2 / 2 and the polynomial of Cephes' expf; relative error < 2e-7.
    The bounds are written so that a NaN passes them.
    """
    x = float32(-87.0) if x < float32(-87.0) else x
    x = float32(88.8) if x > float32(88.8) else x
    k = np.floor(x * float32(1.44269504088896341) + float32(0.5))
    r = x - k * float32(0.693359375) + k * float32(2.12194440e-4)
    p = float32(1.9875691500e-4)
    p = p * r + float32(1.3981999507e-3)
    p = p * r + float32(8.3334519073e-3)
    p = p * r + float32(4.1665795894e-2)
    p = p * r + float32(1.6666665459e-1)
    p = p * r + float32(5.0000001201e-1)
    p = p * r * r + r + float32(1.0)
    return p * _float_of_bits((int32(k) + int32(127)) << int32(23))


@_inline  # type: ignore[untyped-decorator]
def _softplus(x: Any) -> Any:
    """Return log(1 + e**x): max(x, 0) + 2 artanh(s) with s = e / (2 + e), e = e**-|x|."""
    e = _exp(-abs(x))
    s = e / (float32(2.0) + e)
    q = s * s  # at most 1/9, so eight terms of the series reach float32's precision
    p = float32(1.0 / 15.0)
    p = p * q + float32(1.0 / 13.0)
    p = p * q + float32(1.0 / 11.0)
    p = p * q + float32(1.0 / 9.0)
    p = p * q + float32(1.0 / 7.0)
    p = p * q + float32(1.0 / 5.0)
    p = p * q + float32(1.0 / 3.0)
    p = p * q + float32(1.0)
    return (x if x > float32(0.0) else float32(0.0)) + float32(2.0) * s * p


@_inline  # type: ignore[untyped-decorator]
def _sigmoid(x: Any) -> Any:
    return float32(1.0) / (float32(1.0) + _exp(-x))


@_jit  # type: ignore[untyped-decorator]
def _forward(
    first: int, last: int, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, gap: Any,
    emit: Any, softplus: bool, reverse: Any, out: Any,
) -> None:  # fmt: skip
    """Write `out` for the work items `first` … `last` - 1; an absent argument has size 0."""
    length, states, groups = u.shape[1], A.shape[1], reverse.shape[0]
    width = u.shape[2] // groups
    tiles = (width + LANES - 1) // LANES
    has_skip, has_gate, has_bias = D.size > 0, z.size > 0, bias.size > 0
    has_gap, all_emit = gap.size > 0, emit.size == 0
    emits = out.shape[1]
    h = np.empty((states, LANES), np.float32)
    a = np.zeros((states, LANES), np.float32)
    dt = np.zeros(LANES, np.float32)
    decay = np.zeros(LANES, np.float32)
    drive = np.zeros(LANES, np.float32)
    y = np.zeros(LANES, np.float32)
    for item in range(first, last):
        b, rest = divmod(item, groups * tiles)
        g, tile = divmod(rest, tiles)
        low = g * width + tile * LANES
        w = min(LANES, width - tile * LANES)
        for n in range(states):
            for d in range(w):
                a[n, d] = A[low + d, n]
        h[:] = 0.0
        j = emits - 1 if reverse[g] else 0  # the next position that gives an output
        for step in range(length):
            t = length - 1 - step if reverse[g] else step
            for d in range(w):
                dt[d] = delta[b, t, low + d]
            if has_bias:
                for d in range(w):
                    dt[d] += bias[low + d]
            if softplus:
                for d in range(LANES):
                    dt[d] = _softplus(dt[d])
            for d in range(w):
                decay[d] = dt[d]
                drive[d] = dt[d] * u[b, t, low + d]
            if has_gap:
                for d in range(w):
                    decay[d] += gap[b, t, low + d]
            if all_emit:
                j = t
            if all_emit or (0 <= j < emits and emit[b, j] == t):
                y[:] = 0.0
                for n in range(states):
                    bn, cn = B[b, t, g, n], C[b, j, g, n]
                    for d in range(LANES):
                        s = _exp(decay[d] * a[n, d]) * h[n, d] + drive[d] * bn
                        h[n, d] = s
                        y[d] += s * cn
                if has_skip:
                    for d in range(w):
                        y[d] += D[low + d] * u[b, t, low + d]
                if has_gate:
                    for d in range(w):
                        y[d] *= z[b, j, low + d] * _sigmoid(z[b, j, low + d])
                for d in range(w):
                    out[b, j, low + d] = y[d]
                j += -1 if reverse[g] else 1
            else:
                for n in range(states):
                    bn = B[b, t, g, n]
                    for d in range(LANES):
                        h[n, d] = _exp(decay[d] * a[n, d]) * h[n, d] + drive[d] * bn


@_jit  # type: ignore[untyped-decorator]
def _backward(
    first: int, last: int, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, gap: Any,
    emit: Any, softplus: bool, reverse: Any, grad: Any,
    du: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dD: Any, dz: Any, dgap: Any,
) -> None:  # fmt: skip
    """Write or add to the gradients for the work items `first` … `last` - 1.

    dA, dB, dC and dD are summed over items, so each thread brings its own.
    """
    length, states, groups = u.shape[1], A.shape[1], reverse.shape[0]
    width = u.shape[2] // groups
    tiles = (width + LANES - 1) // LANES
    has_skip, has_gate, has_bias = D.size > 0, z.size > 0, bias.size > 0
    has_gap, all_emit = gap.size > 0, emit.size == 0
    emits = grad.shape[1]
    # Row t + 1 of `hs` is the state after scan step t; row 0 the state before the first.
    hs = np.zeros((length + 1, states, LANES), np.float32)
    decays = np.zeros((length, states, LANES), np.float32)
    dts = np.zeros((length, LANES), np.float32)
    targets = np.empty(length, np.int64)  # which output a scan step gives, or -1
    a = np.zeros((states, LANES), np.float32)
    ga = np.empty((states, LANES), np.float32)
    gh = np.empty((states, LANES), np.float32)
    exponent = np.zeros(LANES, np.float32)
    drive = np.zeros(LANES, np.float32)
    gy = np.zeros(LANES, np.float32)
    y = np.zeros(LANES, np.float32)
    gexponent = np.empty(LANES, np.float32)
    gdrive = np.empty(LANES, np.float32)
    for item in range(first, last):
        b, rest = divmod(item, groups * tiles)
        g, tile = divmod(rest, tiles)
        low = g * width + tile * LANES
        w = min(LANES, width - tile * LANES)
        a[:] = 0.0
        for n in range(states):
            for d in range(w):
                a[n, d] = A[low + d, n]
        j = emits - 1 if reverse[g] else 0
        for step in range(length):
            t = length - 1 - step if reverse[g] else step
            targets[step] = -1
            if all_emit:
                targets[step] = t
            elif 0 <= j < emits and emit[b, j] == t:
                targets[step] = j
                j += -1 if reverse[g] else 1
            for d in range(w):
                dts[step, d] = delta[b, t, low + d] + (bias[low + d] if has_bias else float32(0.0))
            if softplus:
                for d in range(LANES):
                    dts[step, d] = _softplus(dts[step, d])
            for d in range(w):
                exponent[d] = dts[step, d] + (gap[b, t, low + d] if has_gap else float32(0.0))
                drive[d] = dts[step, d] * u[b, t, low + d]
            for n in range(states):
                bn = B[b, t, g, n]
                for d in range(LANES):
                    e = _exp(exponent[d] * a[n, d])
                    decays[step, n, d] = e
                    hs[step + 1, n, d] = e * hs[step, n, d] + drive[d] * bn
        gh[:] = 0.0
        ga[:] = 0.0
        for step in range(length - 1, -1, -1):
            t = length - 1 - step if reverse[g] else step
            j = targets[step]
            gy[:] = 0.0
            if j >= 0:
                for d in range(w):
                    gy[d] = grad[b, j, low + d]
                if has_gate:
                    y[:] = 0.0
                    for n in range(states):
                        cn = C[b, j, g, n]
                        for d in range(LANES):
                            y[d] += hs[step + 1, n, d] * cn
                    for d in range(w):
                        if has_skip:
                            y[d] += D[low + d] * u[b, t, low + d]
                        zd = z[b, j, low + d]
                        sig = _sigmoid(zd)
                        dz[b, j, low + d] = gy[d] * y[d] * sig * (float32(1.0) + zd * (float32(1.0) - sig))
                        gy[d] *= zd * sig
                for n in range(states):
                    cn, total = C[b, j, g, n], float32(0.0)
                    for d in range(LANES):
                        gh[n, d] += gy[d] * cn
                        total += gy[d] * hs[step + 1, n, d]
                    dC[b, j, g, n] += total
            for d in range(w):
                exponent[d] = dts[step, d] + (gap[b, t, low + d] if has_gap else float32(0.0))
                drive[d] = dts[step, d] * u[b, t, low + d]
            gexponent[:] = 0.0
            gdrive[:] = 0.0
            for n in range(states):
                bn, total = B[b, t, g, n], float32(0.0)
                for d in range(LANES):
                    e = decays[step, n, d]
                    gp = gh[n, d] * hs[step, n, d] * e
                    gexponent[d] += gp * a[n, d]
                    ga[n, d] += gp * exponent[d]
                    gdrive[d] += gh[n, d] * bn
                    total += gh[n, d] * drive[d]
                    gh[n, d] *= e
                dB[b, t, g, n] += total
            for d in range(w):
                ud, dt = u[b, t, low + d], dts[step, d]
                gu, gdt = gdrive[d] * dt, gexponent[d] + gdrive[d] * ud
                if has_skip:
                    gu += gy[d] * D[low + d]
                    dD[low + d] += gy[d] * ud
                if has_gap:
                    dgap[b, t, low + d] = gexponent[d]
                if softplus:  # d softplus(x) / dx = sigmoid(x) = 1 - exp(-softplus(x))
                    gdt *= float32(1.0) - _exp(-dt)
                du[b, t, low + d] = gu
                ddelta[b, t, low + d] = gdt
        for n in range(states):
            for d in range(w):
                dA[low + d, n] += ga[n, d]


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a forked child has the pool, but not its threads


def _share(items: int, run: Callable[[int, int, int], None]) -> None:
    """Call run(worker, first, last) on torch's number of threads, on equal shares of the items."""
    global _pool
    workers = min(torch.get_num_threads(), items)
    if workers <= 1:
        run(0, 0, items)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="selective-scan")
    bounds = [items * worker // workers for worker in range(workers + 1)]
    for future in [_pool.submit(run, k, bounds[k], bounds[k + 1]) for k in range(workers)]:
        future.result()


def _array(tensor: Tensor | None, ndim: int = 3) -> Any:
    if tensor is None:
        return np.empty((0,) * ndim, np.float32)
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, gap: Tensor | None, emit: Tensor | None, delta_softplus: bool, reverse: list[int],
) -> tuple[Any, ...]:  # fmt: skip
    positions = np.empty((0, 0), np.int64) if emit is None else emit.contiguous().numpy()
    return (
        *map(_array, (u, delta, A, B, C)), _array(D, 1), _array(z), _array(delta_bias, 1), _array(gap),
        positions, delta_softplus, np.array(reverse),
    )  # fmt: skip


def _items(u: Tensor, reverse: list[int]) -> int:
    return u.shape[0] * len(reverse) * -(-(u.shape[2] // len(reverse)) // LANES)


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> Tensor:
    """Scan in float32; see `ssm_models.scan.ops` for the arguments."""
    arguments = _arguments(u, delta, A, B, C, *rest)
    out = torch.empty((u.shape[0], C.shape[1], u.shape[2]), dtype=torch.float32)
    array = out.numpy()
    _share(_items(u, rest[-1]), lambda worker, first, last: _forward(first, last, *arguments, array))
    return out.to(u.dtype)


def backward(grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> list[Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and gap, all float32; empty where absent."""
    arguments = _arguments(u, delta, A, B, C, *rest)
    D, z, bias, gap = arguments[5:9]
    items = _items(u, rest[-1])
    workers = max(1, min(torch.get_num_threads(), items))
    du, ddelta = np.empty(u.shape, np.float32), np.empty(u.shape, np.float32)
    dz, dgap = np.empty(z.shape, np.float32), np.empty(gap.shape, np.float32)
    dA, dB, dC, dD = (np.zeros((workers, *x.shape), np.float32) for x in (A, B, C, D))
    upstream = _array(grad)

    def run(worker: int, first: int, last: int) -> None:
        _backward(
            first, last, *arguments, upstream,
            du, ddelta, dA[worker], dB[worker], dC[worker], dD[worker], dz, dgap,
        )  # fmt: skip

    _share(items, run)
    dbias = ddelta.sum((0, 1)) if bias.size else np.empty(0, np.float32)
    return [torch.from_numpy(x) for x in (du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dz, dbias, dgap)]
