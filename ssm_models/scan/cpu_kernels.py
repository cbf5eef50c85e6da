"""The compiled half of the CPU scan: a vector of channels as a Numba type, and the four loops over it.

A work item is one image, one group of channels (a scan direction) and one tile of `LANES` of its channels. Numba has
no vectors of its own, and LLVM turns only the simplest loops into them; so `Vector` is an LLVM vector of `LANES`
float32, which LLVM splits into whatever registers the processor has. Everything that Numba compiles stays in this one
file: its cache notices changes of no other. The loops are long functions with many arguments because splitting them
costs speed: what they share lives in registers.
"""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import boolean, float32, int64, njit, types
from numba.core import cgutils as _cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, models, overload, register_jitable, register_model

LANES = 32  # two of the widest registers there are, which is no slower where they are narrower
CHUNK = 16  # steps whose Δ are activated together, since one alone would wait for its own latency

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS, _BITS = (ir.VectorType(x, LANES) for x in (_FLOAT, _INT, ir.IntType(1)))
# `contract` lets a * b + c be one instruction. Nothing looser: a NaN must reach whoever looks for it.
_FLAGS = ("contract",)
# Numba has no types of its own to check against.
cgutils: Any = _cgutils
_intrinsic: Any = intrinsic
_inline: Any = register_jitable


class Vector(types.Type):
    """The Numba type of `LANES` float32 in registers."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector{LANES}")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)  # type: ignore[no-untyped-call]


def _constant(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _repeat(builder: Any, scalar: Any) -> Any:
    """Return a vector of the same scalar."""
    zero = ir.Constant(_INT, 0)
    first = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, zero)
    return builder.shuffle_vector(first, first, _constant(_INTS, 0))


def _vectors(context: Any, builder: Any, signature: Any, args: Any) -> list[Any]:
    """Return the arguments as vectors, numbers repeated."""
    return [
        x if isinstance(kind, Vector) else _repeat(builder, context.cast(builder, x, kind, types.float32))
        for x, kind in zip(args, signature.args, strict=True)
    ]


def _elementwise(emit: Callable[..., Any]) -> Any:
    """Make a function of vectors (or numbers) out of one that emits its instructions."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit(builder, *_vectors(context, builder, signature, args))

    return codegen


def _arithmetic(operation: Any, emit: Callable[..., Any]) -> None:
    """Define an operator on two vectors, or a vector and a number."""

    @_intrinsic  # type: ignore[untyped-decorator]
    def compute(typing_context: Any, x: Any, y: Any) -> Any:
        return Vector()(x, y), _elementwise(emit)

    @overload(operation, strict=False)
    def choose(x: Any, y: Any) -> Any:
        if isinstance(x, Vector) or isinstance(y, Vector):
            return lambda x, y: compute(x, y)
        return None


_arithmetic(operator.add, lambda builder, x, y: builder.fadd(x, y, flags=_FLAGS))
_arithmetic(operator.sub, lambda builder, x, y: builder.fsub(x, y, flags=_FLAGS))
_arithmetic(operator.mul, lambda builder, x, y: builder.fmul(x, y, flags=_FLAGS))
_arithmetic(operator.truediv, lambda builder, x, y: builder.fdiv(x, y, flags=_FLAGS))


@_intrinsic  # type: ignore[untyped-decorator]
def _all(typing_context: Any, scalar: Any) -> Any:
    """Return a vector of one number."""
    return Vector()(scalar), _elementwise(lambda builder, x: x)


@_intrinsic  # type: ignore[untyped-decorator]
def _at_least(typing_context: Any, x: Any, bound: Any) -> Any:
    """Return max(x, bound); a NaN in x stays."""
    emit = _elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", y, x), y, x))
    return Vector()(x, bound), emit


@_intrinsic  # type: ignore[untyped-decorator]
def _at_most(typing_context: Any, x: Any, bound: Any) -> Any:
    """Return min(x, bound); a NaN in x stays."""
    emit = _elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", y, x), y, x))
    return Vector()(x, bound), emit


@_intrinsic  # type: ignore[untyped-decorator]
def _absolute(typing_context: Any, x: Any) -> Any:
    def emit(builder: Any, x: Any) -> Any:
        bits = builder.and_(builder.bitcast(x, _INTS), _constant(_INTS, 0x7FFFFFFF))
        return builder.bitcast(bits, _FLOATS)

    return Vector()(x), _elementwise(emit)


@_intrinsic  # type: ignore[untyped-decorator]
def _plain_nan(typing_context: Any, x: Any) -> Any:
    """Return x with its NaNs as the one NaN whose low bits are zero, which `_add_exponent` keeps."""

    def emit(builder: Any, x: Any) -> Any:
        return builder.select(builder.fcmp_unordered("uno", x, x), _constant(_FLOATS, float("nan")), x)

    return Vector()(x), _elementwise(emit)


@_intrinsic  # type: ignore[untyped-decorator]
def _add_exponent(typing_context: Any, x: Any, k: Any) -> Any:
    """Return x · 2**i, where the integer i stands in the low bits of k."""

    def emit(builder: Any, x: Any, k: Any) -> Any:
        shifted = builder.shl(builder.bitcast(k, _INTS), _constant(_INTS, 23))
        return builder.bitcast(builder.add(builder.bitcast(x, _INTS), shifted), _FLOATS)

    return Vector()(x, k), _elementwise(emit)


def _pointer(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    """Return the address of array[index] as a vector's; args start with the array and the index."""
    array = context.make_array(kinds[0])(context, builder, args[0])
    parts = zip(cgutils.unpack_tuple(builder, args[1]), kinds[1], strict=True)
    index = [context.cast(builder, x, kind, types.intp) for x, kind in parts]
    return builder.bitcast(cgutils.get_item_pointer(context, builder, kinds[0], array, index), _FLOATS.as_pointer())


def _first(context: Any, builder: Any, count: Any, kind: Any) -> tuple[Any, Any]:
    """Return whether a vector has all its lanes among the first `count`, and which of them are."""
    count = context.cast(builder, count, kind, types.int32)
    lanes = ir.Constant(_INTS, list(range(LANES)))
    full = builder.icmp_signed(">=", count, ir.Constant(_INT, LANES))
    return full, builder.icmp_signed("<", lanes, _repeat(builder, count))


def _masked(builder: Any, name: str, result: Any, *kinds: Any) -> Any:
    kind = ir.FunctionType(result, kinds)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{LANES}f32.p0")


@_intrinsic  # type: ignore[untyped-decorator]
def _load(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the vector that begins at array[index]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args, args), align=4)

    return Vector()(array, index), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def _load_part(typing_context: Any, array: Any, index: Any, count: Any) -> Any:
    """Return the vector that begins at array[index], with zeros after its first `count` lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = _pointer(context, builder, signature.args, args)
        full, lanes = _first(context, builder, args[2], signature.args[2])
        found = cgutils.alloca_once(builder, _FLOATS)
        with builder.if_else(full, likely=True) as (all_lanes, some):
            with all_lanes:
                builder.store(builder.load(where, align=4), found)
            with some:
                load = _masked(builder, "load", _FLOATS, where.type, _INT, _BITS, _FLOATS)
                zeros = _constant(_FLOATS, 0.0)
                builder.store(builder.call(load, [where, ir.Constant(_INT, 4), lanes, zeros]), found)
        return builder.load(found)

    return Vector()(array, index, count), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def _store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to where array[index] begins."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args, args), align=4)
        return context.get_dummy_value()

    return types.none(array, index, value), codegen


@_intrinsic  # type: ignore[untyped-decorator]
def _store_part(typing_context: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
    """Write the first `count` lanes of a vector to where array[index] begins."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        where = _pointer(context, builder, signature.args, args)
        full, lanes = _first(context, builder, args[3], signature.args[3])
        with builder.if_else(full, likely=True) as (all_lanes, some):
            with all_lanes:
                builder.store(args[2], where, align=4)
            with some:
                store = _masked(builder, "store", ir.VoidType(), _FLOATS, where.type, _INT, _BITS)
                builder.call(store, [args[2], where, ir.Constant(_INT, 4), lanes])
        return context.get_dummy_value()

    return types.none(array, index, value, count), codegen


def _fold(builder: Any, x: Any, y: Any, *lanes: list[int]) -> Any:
    """Return the sum of two choices of lanes out of x and, counted on, y."""
    chosen = (ir.Constant(ir.VectorType(_INT, len(which)), which) for which in lanes)
    return builder.fadd(*(builder.shuffle_vector(x, y, which) for which in chosen))


@_intrinsic  # type: ignore[untyped-decorator]
def _sums(typing_context: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return the sums over the lanes of four vectors, for a third of the instructions of four separate sums."""

    def emit(builder: Any, *vectors: Any) -> Any:
        width = LANES // 2  # after the halves of each vector are added up
        a, b, c, d = (_fold(builder, x, x, list(range(width)), list(range(width, LANES))) for x in vectors)
        fours = range(0, width, 4)
        # Four lanes of x and y become (x y x y) ...
        low = [at + lane for at in fours for lane in (0, width, 1, width + 1)]
        x, y = (_fold(builder, *both, low, [lane + 2 for lane in low]) for both in ((a, b), (c, d)))
        # ... then (a b a b) and (c d c d) become (a b c d), in every four lanes.
        low = [at + lane for at in fours for lane in (0, 1, width, width + 1)]
        total = _fold(builder, x, y, low, [lane + 2 for lane in low])
        while width > 4:
            width //= 2
            total = _fold(builder, total, total, list(range(width)), list(range(width, 2 * width)))
        numbers = [builder.extract_element(total, ir.Constant(_INT, i)) for i in range(4)]
        return cgutils.pack_array(builder, numbers)

    four: Any = types.UniTuple
    return four(types.float32, 4)(a, b, c, d), _elementwise(emit)


@_intrinsic  # type: ignore[untyped-decorator]
def _add_four(typing_context: Any, array: Any, index: Any, numbers: Any) -> Any:
    """Add four numbers to the four elements that begin at array[index]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        four = ir.VectorType(_FLOAT, 4)
        where = builder.bitcast(_pointer(context, builder, signature.args, args), four.as_pointer())
        sums = ir.Constant(four, ir.Undefined)
        for i in range(4):
            sums = builder.insert_element(sums, builder.extract_value(args[2], i), ir.Constant(_INT, i))
        builder.store(builder.fadd(builder.load(where, align=4), sums), where, align=4)
        return context.get_dummy_value()

    return types.none(array, index, numbers), codegen


_LOG2_E, _LN_2 = float32(1.4426950408889634), float32(0.6931471805599453)
# Adding 1.5 · 2**23 rounds to an integer, which then stands in the lowest bits.
_ROUND = float32(12582912.0)


@_inline  # type: ignore[untyped-decorator]
def _exp2(x: Any) -> Any:
    """Return 2**x; relative error < 3e-7. From -127 down it is 0 and from 128 up infinite; a plain NaN stays."""
    x = _at_most(_at_least(x, float32(-127.0)), float32(128.0))
    k = x + _ROUND
    r = x - (k - _ROUND)
    p = r * float32(1.32647276e-03) + float32(9.67151265e-03)
    p = p * r + float32(5.55073374e-02)
    p = p * r + float32(2.40222421e-01)
    p = p * r + float32(6.93146978e-01)
    p = p * r + float32(1.0)
    return _add_exponent(p, k)


@_inline  # type: ignore[untyped-decorator]
def _softplus(x: Any) -> Any:
    """Return log(1 + e**x): max(x, 0) + 2 artanh(s) with s = e / (2 + e), e = e**-|x|."""
    e = _exp2(_plain_nan(_absolute(x) * (-_LOG2_E)))
    s = e / (e + float32(2.0))
    q = s * s  # at most 1/9
    p = q * float32(0.10411317) + float32(0.11126289)
    p = p * q + float32(0.14277406)
    p = p * q + float32(0.20000232)
    p = p * q + float32(0.33333332)
    p = p * q + float32(1.0)
    return _at_least(x, float32(0.0)) + s * p * float32(2.0)


@_inline  # type: ignore[untyped-decorator]
def _sigmoid(x: Any) -> Any:
    return float32(1.0) / (_exp2(_plain_nan(x * (-_LOG2_E))) + float32(1.0))


@_inline  # type: ignore[untyped-decorator]
def _scratch(rows: Any) -> Any:
    """Return an array of vectors, (rows, LANES), that begins where a cache line does."""
    raw = np.empty(rows * LANES + 16, np.float32)
    skip = -(raw.ctypes.data // 4) % 16
    return raw[skip : skip + rows * LANES].reshape(rows, LANES)


@_inline  # type: ignore[untyped-decorator]
def _clear(rows: Any) -> None:
    for row in range(rows.shape[0]):
        _store(rows, (row, 0), _all(float32(0.0)))


@_inline  # type: ignore[untyped-decorator]
def _part_or_zero(array: Any, index: Any, count: Any) -> Any:
    """Return `_load_part`'s vector, or zeros where the argument is absent."""
    return _load_part(array, index, count) if array.size else _all(float32(0.0))


@_inline  # type: ignore[untyped-decorator]
def _add_sums(target: Any, i: Any, j: Any, k: Any, rows: Any) -> None:
    """Add the sum of row n's lanes to target[i, j, k, n]; there are a multiple of four rows."""
    for n in range(0, rows.shape[0], 4):
        sums = _sums(_load(rows, (n, 0)), _load(rows, (n + 1, 0)), _load(rows, (n + 2, 0)), _load(rows, (n + 3, 0)))
        _add_four(target, (i, j, k, n), sums)


def _floats(ndim: int) -> Any:
    return types.Array(float32, ndim, "A")  # any strides, so that slices need no copy and no kernel of their own


def _integers(ndim: int) -> Any:
    return types.Array(int64, ndim, "A")


@cache
def cache_folder() -> str | None:
    """Return where Numba keeps compiled code; None if it may write nowhere, so that each process compiles anew.

    Numba tries `NUMBA_CACHE_DIR`, `__pycache__` beside this file and the user's cache folder.
    """
    try:
        return str(FunctionCache(cache_folder.__wrapped__).cache_path)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def _kernel(*arguments: Any) -> Callable[[Any], Callable[[], Any]]:
    """Compile the decorated function for these types when it is first asked for."""

    def decorate(function: Any) -> Callable[[], Any]:
        @cache
        def compiled() -> Any:
            signature = types.void(int64, int64, *arguments)
            stored = cache_folder() is not None
            return njit(signature, nogil=True, cache=stored, error_model="numpy")(function)

        return compiled

    return decorate


# u, delta, A (N, D), B (b, L, G, N), C (b, K, G, N), D, z, delta_bias, gap; one that is absent has size 0.
_INPUTS = (_floats(3), _floats(3), _floats(2), _floats(4), _floats(4), _floats(1), _floats(3), _floats(1), _floats(3))
# With orders B is (b, P, L, N), the sum of B and B_orders, and C (b, 1, L, N).
# du, ddelta, dA (N, D), dB, dC, dD, dz, dgap: the third to the sixth are added to.
_GRADIENTS = (_floats(3), _floats(3), _floats(2), _floats(4), _floats(4), _floats(1), _floats(3), _floats(3))


@_kernel(*_INPUTS, _integers(2), boolean, _integers(1), _floats(3))
def forward(
    first: int, last: int, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, gap: Any,
    emit: Any, softplus: bool, reverse: Any, out: Any,
) -> None:  # fmt: skip
    """Write `out` (b, K, D) for the work items `first` … `last` - 1."""
    length, states, groups = u.shape[1], A.shape[0], reverse.shape[0]
    width = u.shape[2] // groups
    tiles = (width + LANES - 1) // LANES
    emits = out.shape[1]
    h, a, decays, drives = _scratch(states), _scratch(states), _scratch(CHUNK), _scratch(CHUNK)
    for item in range(first, last):
        b, rest = divmod(item, groups * tiles)
        g, tile = divmod(rest, tiles)
        low = g * width + tile * LANES
        w = min(LANES, width - tile * LANES)
        for n in range(states):
            _store(a, (n, 0), _plain_nan(_load_part(A, (n, low), w) * _LOG2_E))
        _clear(h)
        shift, skip = _part_or_zero(bias, (low,), w), _part_or_zero(D, (low,), w)
        j = emits - 1 if reverse[g] else 0  # the next position that gives an output
        for begin in range(0, length, CHUNK):
            steps = min(CHUNK, length - begin)
            for i in range(steps):
                t = length - 1 - begin - i if reverse[g] else begin + i
                dt = _load_part(delta, (b, t, low), w) + shift
                if softplus:
                    dt = _softplus(dt)
                _store(drives, (i, 0), dt * _load_part(u, (b, t, low), w))
                _store(decays, (i, 0), _plain_nan(dt + _part_or_zero(gap, (b, t, low), w)))
            for i in range(steps):
                t = length - 1 - begin - i if reverse[g] else begin + i
                decay, drive = _load(decays, (i, 0)), _load(drives, (i, 0))
                if emit.size == 0:
                    j = t
                if emit.size == 0 or (0 <= j < emits and emit[b, j] == t):
                    y = _all(float32(0.0))
                    for n in range(states):
                        s = _exp2(decay * _load(a, (n, 0))) * _load(h, (n, 0)) + drive * B[b, t, g, n]
                        _store(h, (n, 0), s)
                        y = y + s * C[b, j, g, n]
                    if D.size:
                        y = y + skip * _load_part(u, (b, t, low), w)
                    if z.size:
                        gate = _load_part(z, (b, j, low), w)
                        y = y * (gate * _sigmoid(gate))
                    _store_part(out, (b, j, low), y, w)
                    j += -1 if reverse[g] else 1
                else:
                    for n in range(states):
                        s = _exp2(decay * _load(a, (n, 0))) * _load(h, (n, 0)) + drive * B[b, t, g, n]
                        _store(h, (n, 0), s)


@_kernel(*_INPUTS, _integers(2), _integers(3), boolean, _floats(3))
def forward_orders(
    first: int, last: int, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, gap: Any,
    emit: Any, orders: Any, softplus: bool, out: Any,
) -> None:  # fmt: skip
    """Write `out` (b, K, D) for the work items `first` … `last` - 1, each of P directions with one decay."""
    length, states, paths = u.shape[1], A.shape[0], orders.shape[1]
    tiles = (u.shape[2] + LANES - 1) // LANES
    h, a, decays = _scratch(paths * states), _scratch(states), _scratch(states)
    dts, exponents = _scratch(CHUNK), _scratch(CHUNK)
    us, ys = _scratch(length), _scratch(length)  # by token; a copy of u, since the orders jump about in it
    for item in range(first, last):
        b, tile = divmod(item, tiles)
        low = tile * LANES
        w = min(LANES, u.shape[2] - low)
        for n in range(states):
            _store(a, (n, 0), _plain_nan(_load_part(A, (n, low), w) * _LOG2_E))
        _clear(h)
        _clear(ys)
        shift, skip = _part_or_zero(bias, (low,), w), _part_or_zero(D, (low,), w) * paths
        for t in range(length):
            _store(us, (t, 0), _load_part(u, (b, t, low), w))
        for begin in range(0, length, CHUNK):
            steps = min(CHUNK, length - begin)
            for i in range(steps):
                dt = _load_part(delta, (b, begin + i, low), w) + shift
                if softplus:
                    dt = _softplus(dt)
                _store(dts, (i, 0), dt)
                _store(exponents, (i, 0), _plain_nan(dt + _part_or_zero(gap, (b, begin + i, low), w)))
            for i in range(steps):
                t, dt, exponent = begin + i, _load(dts, (i, 0)), _load(exponents, (i, 0))
                for n in range(states):
                    _store(decays, (n, 0), _exp2(exponent * _load(a, (n, 0))))
                for p in range(paths):
                    token = orders[b, p, t]
                    drive, y = dt * _load(us, (token, 0)), _load(ys, (token, 0))
                    for n in range(states):
                        row = p * states + n
                        s = _load(decays, (n, 0)) * _load(h, (row, 0)) + drive * B[b, p, t, n]
                        _store(h, (row, 0), s)
                        y = y + s * C[b, 0, t, n]
                    _store(ys, (token, 0), y)
        for j in range(out.shape[1]):
            token = emit[b, j] if emit.size else j
            y = _load(ys, (token, 0))
            if D.size:
                y = y + skip * _load(us, (token, 0))
            if z.size:
                gate = _load_part(z, (b, j, low), w)
                y = y * (gate * _sigmoid(gate))
            _store_part(out, (b, j, low), y, w)


@_kernel(*_INPUTS, _integers(2), boolean, _integers(1), _floats(3), *_GRADIENTS)
def backward(
    first: int, last: int, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, gap: Any,
    emit: Any, softplus: bool, reverse: Any, grad: Any,
    du: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dD: Any, dz: Any, dgap: Any,
) -> None:  # fmt: skip
    """Write or add to the gradients for the work items `first` … `last` - 1.

    dA, dB, dC and dD are summed over items, so each thread brings its own; the last dimension of dB and dC
    is N rounded up to a multiple of four.
    """
    length, states, groups = u.shape[1], A.shape[0], reverse.shape[0]
    width = u.shape[2] // groups
    tiles = (width + LANES - 1) // LANES
    emits = grad.shape[1]
    # Rows from (t + 1) N of `hs` are the state after scan step t; the first N that before the first.
    hs, decays = _scratch((length + 1) * states), _scratch(length * states)
    dts, slopes, gys = _scratch(length), _scratch(length), _scratch(length)
    targets = np.empty(length, np.int64)  # which output a scan step gives, or -1
    a, ga, gh = _scratch(states), _scratch(states), _scratch(states)
    bs, cs = _scratch(dB.shape[3]), _scratch(dC.shape[3])
    _clear(hs[:states])
    _clear(bs)
    _clear(cs)
    for item in range(first, last):
        b, rest = divmod(item, groups * tiles)
        g, tile = divmod(rest, tiles)
        low = g * width + tile * LANES
        w = min(LANES, width - tile * LANES)
        for n in range(states):
            _store(a, (n, 0), _plain_nan(_load_part(A, (n, low), w) * _LOG2_E))
        _clear(gh)
        _clear(ga)
        shift, skip = _part_or_zero(bias, (low,), w), _part_or_zero(D, (low,), w)
        j = emits - 1 if reverse[g] else 0
        for step in range(length):
            t = length - 1 - step if reverse[g] else step
            dt = _load_part(delta, (b, t, low), w) + shift
            if softplus:
                _store(slopes, (step, 0), _sigmoid(dt))
                dt = _softplus(dt)
            _store(dts, (step, 0), dt)
            targets[step] = t if emit.size == 0 else -1
            if emit.size and 0 <= j < emits and emit[b, j] == t:
                targets[step] = j
                j += -1 if reverse[g] else 1
        gskip = _all(float32(0.0))
        for step in range(length):
            t = length - 1 - step if reverse[g] else step
            j, dt, ut = targets[step], _load(dts, (step, 0)), _load_part(u, (b, t, low), w)
            drive, decay = dt * ut, _plain_nan(dt + _part_or_zero(gap, (b, t, low), w))
            y = skip * ut
            for n in range(states):
                row = step * states + n
                e = _exp2(decay * _load(a, (n, 0)))
                s = e * _load(hs, (row, 0)) + drive * B[b, t, g, n]
                _store(decays, (row, 0), e)
                _store(hs, (row + states, 0), s)
                if z.size and j >= 0:
                    y = y + s * C[b, j, g, n]
            gy = _all(float32(0.0))
            if j >= 0:
                gy = _load_part(grad, (b, j, low), w)
                if z.size:
                    gate = _load_part(z, (b, j, low), w)
                    open_ = _sigmoid(gate)
                    _store_part(dz, (b, j, low), gy * y * open_ * (gate * (float32(1.0) - open_) + float32(1.0)), w)
                    gy = gy * (gate * open_)
                gskip = gskip + gy * ut
            _store(gys, (step, 0), gy)
        for step in range(length - 1, -1, -1):
            t = length - 1 - step if reverse[g] else step
            j, dt, ut, gy = targets[step], _load(dts, (step, 0)), _load_part(u, (b, t, low), w), _load(gys, (step, 0))
            drive, decay = dt * ut, dt + _part_or_zero(gap, (b, t, low), w)
            gdrive, gdecay = _all(float32(0.0)), _all(float32(0.0))
            for n in range(states):
                row = step * states + n
                gs = _load(gh, (n, 0))
                if j >= 0:
                    gs = gs + gy * C[b, j, g, n]
                    _store(cs, (n, 0), gy * _load(hs, (row + states, 0)))
                _store(bs, (n, 0), gs * drive)
                gdrive = gdrive + gs * B[b, t, g, n]
                gs = gs * _load(decays, (row, 0))
                _store(gh, (n, 0), gs)
                gs = gs * _load(hs, (row, 0))  # the gradient of the exponent
                gdecay = gdecay + gs * _load(a, (n, 0))
                _store(ga, (n, 0), _load(ga, (n, 0)) + gs * decay)
            _add_sums(dB, b, t, g, bs)
            if j >= 0:
                _add_sums(dC, b, j, g, cs)
            gdecay = gdecay * _LN_2
            if gap.size:
                _store_part(dgap, (b, t, low), gdecay, w)
            gdt = gdecay + gdrive * ut
            if softplus:
                gdt = gdt * _load(slopes, (step, 0))
            _store_part(du, (b, t, low), gdrive * dt + gy * skip, w)
            _store_part(ddelta, (b, t, low), gdt, w)
        for n in range(states):
            _store_part(dA, (n, low), _load_part(dA, (n, low), w) + _load(ga, (n, 0)), w)
        if D.size:
            _store_part(dD, (low,), _load_part(dD, (low,), w) + gskip, w)


@_kernel(*_INPUTS, _integers(2), _integers(3), boolean, _floats(3), *_GRADIENTS)
def backward_orders(
    first: int, last: int, u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, gap: Any,
    emit: Any, orders: Any, softplus: bool, grad: Any,
    du: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dD: Any, dz: Any, dgap: Any,
) -> None:  # fmt: skip
    """Do what `backward` does, for work items of P directions with one decay."""
    length, states, paths = u.shape[1], A.shape[0], orders.shape[1]
    tiles = (u.shape[2] + LANES - 1) // LANES
    rows = paths * states
    hs, decays = _scratch((length + 1) * rows), _scratch(length * states)
    dts, slopes = _scratch(length), _scratch(length)
    us, ys, gys, gus = _scratch(length), _scratch(length), _scratch(length), _scratch(length)  # by token
    a, ga, gh = _scratch(states), _scratch(states), _scratch(rows)
    bs, cs = _scratch(dB.shape[3]), _scratch(dC.shape[3])
    _clear(hs[:rows])
    _clear(bs)
    _clear(cs)
    for item in range(first, last):
        b, tile = divmod(item, tiles)
        low = tile * LANES
        w = min(LANES, u.shape[2] - low)
        for n in range(states):
            _store(a, (n, 0), _plain_nan(_load_part(A, (n, low), w) * _LOG2_E))
        _clear(gh)
        _clear(ga)
        _clear(ys)
        _clear(gys)
        _clear(gus)
        shift, skip = _part_or_zero(bias, (low,), w), _part_or_zero(D, (low,), w) * paths
        for t in range(length):
            dt = _load_part(delta, (b, t, low), w) + shift
            if softplus:
                _store(slopes, (t, 0), _sigmoid(dt))
                dt = _softplus(dt)
            _store(dts, (t, 0), dt)
            _store(us, (t, 0), _load_part(u, (b, t, low), w))
        for t in range(length):
            dt = _load(dts, (t, 0))
            decay = _plain_nan(dt + _part_or_zero(gap, (b, t, low), w))
            for n in range(states):
                _store(decays, (t * states + n, 0), _exp2(decay * _load(a, (n, 0))))
            for p in range(paths):
                token = orders[b, p, t]
                drive, y = dt * _load(us, (token, 0)), _load(ys, (token, 0))
                for n in range(states):
                    row = t * rows + p * states + n
                    s = _load(decays, (t * states + n, 0)) * _load(hs, (row, 0)) + drive * B[b, p, t, n]
                    _store(hs, (row + rows, 0), s)
                    y = y + s * C[b, 0, t, n]
                _store(ys, (token, 0), y)
        gskip = _all(float32(0.0))
        for j in range(grad.shape[1]):
            token = emit[b, j] if emit.size else j
            gy, ut = _load_part(grad, (b, j, low), w), _load(us, (token, 0))
            if z.size:
                gate, y = _load_part(z, (b, j, low), w), _load(ys, (token, 0)) + skip * ut
                open_ = _sigmoid(gate)
                _store_part(dz, (b, j, low), gy * y * open_ * (gate * (float32(1.0) - open_) + float32(1.0)), w)
                gy = gy * (gate * open_)
            gskip = gskip + gy * ut
            _store(gys, (token, 0), gy)
            _store(gus, (token, 0), gy * skip)
        for t in range(length - 1, -1, -1):
            dt = _load(dts, (t, 0))
            decay = dt + _part_or_zero(gap, (b, t, low), w)
            gdt, gdecay = _all(float32(0.0)), _all(float32(0.0))
            for p in range(paths):
                token = orders[b, p, t]
                ut, gy, gdrive = _load(us, (token, 0)), _load(gys, (token, 0)), _all(float32(0.0))
                drive = dt * ut
                for n in range(states):
                    row = t * rows + p * states + n
                    gs = _load(gh, (p * states + n, 0)) + gy * C[b, 0, t, n]
                    _store(cs, (n, 0), gy * _load(hs, (row + rows, 0)))
                    _store(bs, (n, 0), gs * drive)
                    gdrive = gdrive + gs * B[b, p, t, n]
                    gs = gs * _load(decays, (t * states + n, 0))
                    _store(gh, (p * states + n, 0), gs)
                    gs = gs * _load(hs, (row, 0))
                    gdecay = gdecay + gs * _load(a, (n, 0))
                    _store(ga, (n, 0), _load(ga, (n, 0)) + gs * decay)
                _add_sums(dB, b, p, t, bs)
                _add_sums(dC, b, 0, t, cs)
                gdt = gdt + gdrive * ut
                _store(gus, (token, 0), _load(gus, (token, 0)) + gdrive * dt)
            gdecay = gdecay * _LN_2
            if gap.size:
                _store_part(dgap, (b, t, low), gdecay, w)
            gdt = gdt + gdecay
            if softplus:
                gdt = gdt * _load(slopes, (t, 0))
            _store_part(ddelta, (b, t, low), gdt, w)
        for t in range(length):
            _store_part(du, (b, t, low), _load(gus, (t, 0)), w)
        for n in range(states):
            _store_part(dA, (n, low), _load_part(dA, (n, low), w) + _load(ga, (n, 0)), w)
        if D.size:
            _store_part(dD, (low,), _load_part(dD, (low,), w) + gskip * paths, w)
