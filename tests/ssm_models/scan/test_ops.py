"""One suite for every backend of the selective scan, against a recurrence written out in float64.

A backend that cannot run here is skipped and says why, but for two: mamba-ssm runs on a stand-in for its
library, and test_triton.py runs the cases of triton in its interpreter, where it wants small ones.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssm_models.scan import channel_last_scan, selective_scan
from ssm_models.scan.backends import NAMES, available
from tests.ssm_models.scan.test_mamba_ssm import stand_in

# Of the largest value, in float32. In half precision what is measured is the rounding of the output, and in the
# reference, which computes in the dtype that it is given, of every step.
TOLERANCE = dict.fromkeys(NAMES, 1e-5)
HALF = {
    torch.float16: {"reference": 0.02, "cpu": 0.02, "triton": 0.002, "mamba_ssm": 0.01},
    torch.bfloat16: {"reference": 0.1, "cpu": 0.1, "triton": 0.01, "mamba_ssm": 0.05},
}
GRADIENT_TOLERANCE = 1e-4
MAMBA_S = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "gap")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = [name for name in NAMES if name != "reference"]


@pytest.fixture(params=NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    reason = available()[name]
    if reason and name != "mamba_ssm":
        pytest.skip(f"{name} {reason}")
    with stand_in() if reason else contextlib.nullcontext():
        yield name


def moved(a: dict[str, Any], backend: str) -> dict[str, Any]:
    """Put the arguments where the backend runs."""
    on_gpu = torch.cuda.is_available() and backend in ("triton", "mamba_ssm") and not INTERPRETED
    return {k: v.cuda() if on_gpu and isinstance(v, Tensor) else v for k, v in a.items()}


def scan(backend: str, **a: Any) -> Tensor:
    return channel_last_scan(**moved(a, backend), backend=backend).cpu()


def arguments(
    batch: int, length: int, width: int, states: int, groups: int = 1, *, kept: int | None = None,
    plain: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0, paths: int = 0, shared: bool = True,
) -> dict[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    channels, emits = width * groups, length if kept is None else kept
    images = 1 if shared else batch
    order = torch.rand(batch, length, generator=generator).argsort(1)[:, :emits].sort(1).values
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length if paths else emits, groups, states),
        "D": None if plain else normal(channels),
        "z": None if plain else normal(batch, emits, channels),
        "delta_bias": None if plain else normal(channels),
        "gap": None if plain else normal(batch, length, channels).abs(),
        "emit": None if kept is None else order,
        "orders": torch.rand(images, paths, length, generator=generator).argsort(-1) if paths else None,
        "B_orders": normal(images, paths, length, states) if paths and not plain else None,
        "delta_softplus": True,
    }


def by_hand(reverse: list[bool], **a: Any) -> Tensor:
    """Walk each channel's recurrence on its own, in float64."""
    a = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in a.items()}
    u, emit = a["u"], a["emit"]
    batch, length, channels = u.shape
    delta = a["delta"] + (0 if a["delta_bias"] is None else a["delta_bias"])
    delta = torch.nn.functional.softplus(delta) if a["delta_softplus"] else delta
    out = []
    for b in range(batch):
        rows = []
        if a["orders"] is not None:
            out.append(by_hand_in_orders(b, **a | {"delta": delta}))
            continue
        targets = list(range(length)) if emit is None else emit[b].tolist()
        seen: dict[int, Tensor] = {}
        for g, backwards in enumerate(reverse):
            width = channels // len(reverse)
            part = slice(g * width, (g + 1) * width)
            h = torch.zeros(width, a["A"].shape[1], dtype=torch.float64)
            for t in reversed(range(length)) if backwards else range(length):
                step = delta[b, t, part] + (0 if a["gap"] is None else a["gap"][b, t, part])
                h = torch.exp(step[:, None] * a["A"][part]) * h
                h = h + (delta[b, t, part] * u[b, t, part])[:, None] * a["B"][b, t, g]
                if t in targets:
                    seen.setdefault(t, torch.zeros(channels, dtype=torch.float64))
                    seen[t][part] = h @ a["C"][b, targets.index(t), g]
        for j, t in enumerate(targets):
            y = seen[t] + (0 if a["D"] is None else a["D"] * u[b, t])
            rows.append(y if a["z"] is None else y * torch.nn.functional.silu(a["z"][b, j]))
        out.append(torch.stack(rows))
    return torch.stack(out)


def by_hand_in_orders(b: int, **a: Any) -> Tensor:
    """Walk each direction over one image, at every step one token; delta after the softplus."""
    u, delta, y = a["u"][b], a["delta"], torch.zeros_like(a["u"][b])
    orders = a["orders"].expand(len(a["u"]), -1, -1)[b].tolist()
    for p, order in enumerate(orders):
        h = torch.zeros_like(a["A"])
        for t, token in enumerate(order):
            step = delta[b, t] + (0 if a["gap"] is None else a["gap"][b, t])
            added = 0 if a["B_orders"] is None else a["B_orders"].expand(len(a["u"]), -1, -1, -1)[b, p, t]
            h = torch.exp(step[:, None] * a["A"]) * h + (delta[b, t] * u[token])[:, None] * (a["B"][b, t, 0] + added)
            y[token] += h @ a["C"][b, t, 0] + (0 if a["D"] is None else a["D"] * u[token])
    y = y if a["emit"] is None else y[a["emit"][b]]
    return y if a["z"] is None else y * torch.nn.functional.silu(a["z"][b])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert error < tolerance, f"relative error {error:.1e}"


# The fixture only says which backend it is, so that it may last over the examples.
@settings(max_examples=5 if INTERPRETED else 40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values(backend: str, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3))
    length = data.draw(st.integers(1, 12 if INTERPRETED else 24))
    kept = data.draw(st.none() | st.integers(1, length))
    reverse = data.draw(st.lists(st.booleans(), min_size=groups, max_size=groups))
    a = arguments(
        data.draw(st.integers(1, 3)), length, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 17)), groups,
        kept=kept, plain=data.draw(st.booleans()), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    found = scan(backend, **a, reverse=reverse)
    close(found, by_hand(reverse, **a), TOLERANCE[backend])


@settings(max_examples=5 if INTERPRETED else 30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_in_orders(backend: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 8 if INTERPRETED else 16))
    a = arguments(
        data.draw(st.integers(1, 3)), length, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 17)),
        kept=data.draw(st.none() | st.integers(1, length)), plain=data.draw(st.booleans()),
        seed=data.draw(st.integers(0, 99)), paths=data.draw(st.integers(1, 4)), shared=data.draw(st.booleans()),
    )  # fmt: skip
    close(scan(backend, **a), by_hand([False], **a), TOLERANCE[backend])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kept", [None, 5])
def test_orders_are_the_sum_of_plain_scans(backend: str, kept: int | None, shared: bool) -> None:
    """P directions in one call equal P calls on gathered tokens, each put back to its tokens."""
    a = arguments(2, 9, 6, 4, kept=kept, paths=4, shared=shared)
    total = torch.zeros(2, 9, 6)
    orders, B_orders = (x.expand(2, *x.shape[1:]) for x in (a["orders"], a["B_orders"]))
    rows = torch.arange(2)[:, None]
    for p in range(4):
        plain = dict.fromkeys(("z", "emit", "orders", "B_orders"))
        changed = {"u": a["u"][rows, orders[:, p]], "B": a["B"] + B_orders[:, p, :, None]}
        total[rows, orders[:, p]] += scan(backend, **a | plain | changed)
    total = total if kept is None else total[rows, a["emit"]]
    expected = total * torch.nn.functional.silu(a["z"])
    close(scan(backend, **a), expected.double(), TOLERANCE[backend])


@pytest.mark.parametrize("length", [1, 2, 131, 1024, 4096])
def test_lengths(backend: str, length: int) -> None:
    if INTERPRETED and length > 131:
        pytest.skip("too long for the interpreter")
    a = arguments(1, length, 2, 3, 2)
    reverse = [False, True]
    close(scan(backend, **a, reverse=reverse), by_hand(reverse, **a), TOLERANCE[backend])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kept", [None, 3])
@pytest.mark.parametrize("paths", [0, 2])
def test_reference_gradients(kept: int | None, plain: bool, paths: int) -> None:
    groups = 1 if paths else 2
    a = arguments(2, 5, 3, 2, groups, kept=kept, plain=plain, dtype=torch.float64, paths=paths, shared=plain)
    names = [name for name, value in a.items() if isinstance(value, Tensor) and value.is_floating_point()]

    def run(*tensors: Tensor) -> Tensor:
        inputs = {**a, **dict(zip(names, tensors, strict=True))}
        return channel_last_scan(**inputs, reverse=[False, True][:groups], backend="reference")

    assert torch.autograd.gradcheck(run, [a[name].requires_grad_() for name in names])


def compare_gradients(backend: str, a: dict[str, Any], reverse: list[bool]) -> None:
    """Hold a backend's gradients against the reference's in float64."""
    grads = {}
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaves = {
            k: v.to(dtype).detach().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in a.items()
        }
        y = scan(name, **leaves, reverse=reverse)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
        y.backward(upstream.to(dtype))
        grads[name] = {k: v.grad for k, v in leaves.items() if isinstance(v, Tensor) and v.is_floating_point()}
    for key, expected in grads["reference"].items():
        assert expected is not None
        assert grads[backend][key].shape == expected.shape
        if expected.abs().max() > 0:
            close(grads[backend][key], expected, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("backend", COMPILED, indirect=True)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kept", [None, 1, 20])
@pytest.mark.parametrize(("length", "width", "states", "groups"), [(1, 3, 1, 1), (37, 33, 16, 2), (20, 70, 5, 4)])
def test_gradients_are_the_reference_s(
    backend: str, length: int, width: int, states: int, groups: int, kept: int | None, plain: bool
) -> None:
    batch = 3
    if INTERPRETED and plain and kept:
        pytest.skip("without D, z, bias and gap there is little left that depends on it")
    if INTERPRETED:
        batch, length, width, groups = 1, min(length, 6), min(width, 35), min(groups, 2)
    a = arguments(batch, length, width, states, groups, kept=kept and min(kept, length), plain=plain)
    compare_gradients(backend, a, [g % 2 == 1 for g in range(groups)])


@pytest.mark.parametrize("backend", COMPILED, indirect=True)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kept", [None, 3])
@pytest.mark.parametrize(
    ("length", "width", "states", "paths", "shared"), [(1, 3, 1, 1, True), (9, 33, 16, 4, True), (6, 5, 3, 3, False)]
)
def test_gradients_in_orders_are_the_reference_s(
    backend: str, length: int, width: int, states: int, paths: int, shared: bool, kept: int | None, plain: bool
) -> None:
    kept, batch = kept and min(kept, length), 2
    if INTERPRETED:
        batch, length, width = (1 if shared else 2), min(length, 6), min(width, 12)
    a = arguments(batch, length, width, states, kept=kept, plain=plain, paths=paths, shared=shared)
    compare_gradients(backend, a, [False])


@pytest.mark.parametrize("backend", COMPILED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("paths", [0, 2])
def test_gradients_in_half_precision(backend: str, dtype: torch.dtype, paths: int) -> None:
    """Of what a model keeps in half precision; its parameters stay in float32."""
    a = arguments(1, 5, 6, 4, paths=paths) if INTERPRETED else arguments(2, 9, 6, 4, paths=paths)
    kept = ("A", "D", "delta_bias", "B_orders")
    half = {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() and k not in kept else v
        for k, v in a.items()
    }
    grads = []
    for name, arrays in ((backend, half), ("reference", half)):
        leaves = {
            k: v.detach().to(torch.float64 if name == "reference" else v.dtype).requires_grad_()
            for k, v in arrays.items() if isinstance(v, Tensor) and v.is_floating_point()
        }  # fmt: skip
        y = scan(name, **half | leaves)
        y.backward(torch.ones_like(y))
        grads.append({k: v.grad for k, v in leaves.items()})
    for key, expected in grads[1].items():
        assert grads[0][key].dtype == half[key].dtype
        close(grads[0][key], expected, 4 * HALF[dtype][backend])


def test_a_gap_is_what_pruned_positions_would_have_done(backend: str) -> None:
    """The scan over kept positions with gaps equals the full scan whose pruned positions have no input."""
    a = arguments(3, 30, 8, 4, plain=True)
    for reverse in (False, True):
        delta = torch.nn.functional.softplus(a["delta"])
        kept = torch.rand(3, 30).argsort(1)[:, :11].sort(1).values
        mask = torch.zeros(3, 30).scatter(1, kept, 1.0)[..., None]
        whole = {"u": a["u"] * mask, "delta": delta, "A": a["A"], "B": a["B"], "C": a["C"]}
        full = scan(backend, **whole, reverse=reverse)
        gaps = torch.zeros(3, 11, 8)
        for b in range(3):
            places = kept[b].tolist()
            for j, t in enumerate(places):
                if reverse:
                    between = range(t + 1, places[j + 1] if j + 1 < 11 else 30)
                else:
                    between = range(places[j - 1] + 1 if j else 0, t)
                gaps[b, j] = sum((delta[b, s] for s in between), torch.zeros(8))
        rows = torch.arange(3)[:, None]
        part = {k: v if k == "A" else v[rows, kept] for k, v in (whole | {"u": a["u"]}).items()}
        found = scan(backend, **part, gap=gaps, reverse=reverse)
        close(found, full[rows, kept].double(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_its_own(backend: str, dtype: torch.dtype) -> None:
    for paths in (0, 2):
        full = arguments(2, 9, 6, 4, paths=paths)
        a = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in full.items()}
        found = scan(backend, **a)
        assert found.dtype == dtype
        close(found, by_hand([False], **a), HALF[dtype][backend])


def test_nan_is_not_swallowed(backend: str) -> None:
    for name in ("u", "delta", "B", "C", "z", "A"):
        a = arguments(1, 6, 4, 3)
        a[name].view(-1)[0] = torch.nan
        assert scan(backend, **a).isnan().any(), name


def test_empty_batches_and_strided_inputs(backend: str) -> None:
    for paths in (0, 2):
        empty = arguments(0, 5, 4, 3, paths=paths)
        empty["u"].requires_grad_()
        found = scan(backend, **empty)
        assert found.shape == (0, 5, 4)
        found.sum().backward()
        assert empty["u"].grad is not None
        assert empty["u"].grad.shape == (0, 5, 4)
    a = arguments(2, 7, 5, 3, plain=True)
    strided = {k: v.transpose(-1, -2).contiguous().transpose(-1, -2) if k != "A" else v for k, v in a.items()
               if isinstance(v, Tensor)}  # fmt: skip
    found = scan(backend, **strided, delta_softplus=True)
    close(found, by_hand([False], **a), 1e-5)


def test_slices_of_one_projection_are_read_where_they_lie(backend: str) -> None:
    """As a model has them: u and z in one tensor, B and C behind the low-rank Δ in another."""
    for dtype, skipped in ((torch.float32, 4), (torch.bfloat16, 8), (torch.bfloat16, 3)):
        a = arguments(2, 6, 5, 8, plain=True)
        wide, narrow = torch.cat([a["u"], a["delta"]], 2).to(dtype), torch.randn(2, 6, skipped + 16).to(dtype)
        a["u"], a["z"] = wide[..., :5], wide[..., 5:]
        a["B"], a["C"] = narrow[:, :, None, skipped : skipped + 8], narrow[:, :, None, skipped + 8 :]
        a["delta"] = a["delta"].to(dtype)
        tolerance = TOLERANCE[backend] if dtype == torch.float32 else HALF[dtype][backend]
        close(scan(backend, **a), by_hand([False], **a), tolerance)


def test_threads_do_not_change_the_values() -> None:
    a = arguments(4, 40, 70, 8, 2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(channel_last_scan(**a, reverse=[False, True], backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_the_operator_is_well_formed(backend: str) -> None:
    for paths, kept in ((0, None), (2, 3)):
        a = moved(arguments(2, 5, 3, 2, paths=paths, kept=kept), backend)
        for value in a.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.requires_grad_()
        del a["delta_softplus"]
        torch.library.opcheck(
            torch.ops.prunefront.selective_scan.default,
            (*a.values(), True, [0], backend),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_mamba_s_shapes() -> None:
    """(b, D, L) in and out, with B and C as (b, N, L) or (b, G, N, L)."""
    a = arguments(2, 6, 4, 3)
    expected = by_hand([False], **a)
    channel_first = {
        k: v.movedim(1, -1) if k in ("u", "delta", "z", "gap") else v for k, v in a.items() if k in MAMBA_S
    }
    grouped = {**channel_first, "B": a["B"].permute(0, 2, 3, 1), "C": a["C"].permute(0, 2, 3, 1)}
    single = {**channel_first, "B": a["B"][:, :, 0].transpose(1, 2), "C": a["C"][:, :, 0].transpose(1, 2)}
    for form in (grouped, single):
        found = selective_scan(**form)
        assert found.shape == (2, 4, 6)
        close(found.movedim(1, -1), expected, 1e-5)


def test_wrong_shapes_and_names_are_refused() -> None:
    a = arguments(2, 6, 4, 3)
    for key, wrong in (("delta", a["delta"][:, :5]), ("A", a["A"][:3]), ("B", a["B"][:, :5])):
        with pytest.raises(ValueError, match="selective_scan"):
            channel_last_scan(**{**a, key: wrong})
    for key in ("D", "delta_bias", "gap", "z"):
        right = torch.zeros(4) if key in ("D", "delta_bias") else torch.zeros(2, 6, 4)
        channel_last_scan(**{**a, key: right})
        for wrong in (right[:1], right[..., :3], right[..., None], right[:, :5] if right.dim() == 3 else right[:0]):
            with pytest.raises(ValueError, match=f"selective_scan: {key} has shape"):
                channel_last_scan(**{**a, key: wrong})
    with pytest.raises(ValueError, match="expand constant ones"):
        selective_scan(torch.zeros(2, 4, 6), torch.zeros(2, 4, 6), a["A"], torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="unknown scan backend"):
        channel_last_scan(**a, backend="quantum")
