"""One suite for every backend of the selective scan, against a recurrence written out in float64."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssm_models.scan import channel_last_scan, selective_scan
from ssm_models.scan.backends import NAMES, scan_backend

TOLERANCE = {"reference": 1e-5, "cpu": 1e-5}


def arguments(
    batch: int, length: int, width: int, states: int, groups: int = 1, *, kept: int | None = None,
    plain: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    channels, emits = width * groups, length if kept is None else kept
    order = torch.rand(batch, length, generator=generator).argsort(1)[:, :emits].sort(1).values
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, emits, groups, states),
        "D": None if plain else normal(channels),
        "z": None if plain else normal(batch, emits, channels),
        "delta_bias": None if plain else normal(channels),
        "gap": None if plain else normal(batch, length, channels).abs(),
        "emit": None if kept is None else order,
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


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    assert error < tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("backend", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_values(backend: str, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3))
    length = data.draw(st.integers(1, 24))
    kept = data.draw(st.none() | st.integers(1, length))
    reverse = data.draw(st.lists(st.booleans(), min_size=groups, max_size=groups))
    a = arguments(
        data.draw(st.integers(1, 3)), length, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 17)), groups,
        kept=kept, plain=data.draw(st.booleans()), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    found = channel_last_scan(**a, reverse=reverse, backend=backend)
    close(found, by_hand(reverse, **a), TOLERANCE[backend])


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kept", [None, 3])
def test_reference_gradients(kept: int | None, plain: bool) -> None:
    a = arguments(2, 5, 3, 2, 2, kept=kept, plain=plain, dtype=torch.float64)
    names = [name for name, value in a.items() if isinstance(value, Tensor) and name != "emit"]

    def run(*tensors: Tensor) -> Tensor:
        inputs = {**a, **dict(zip(names, tensors, strict=True))}
        return channel_last_scan(**inputs, reverse=[False, True], backend="reference")

    assert torch.autograd.gradcheck(run, [a[name].requires_grad_() for name in names])


@pytest.mark.parametrize("backend", [name for name in NAMES if name != "reference"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kept", [None, 1, 20])
@pytest.mark.parametrize(("length", "width", "states", "groups"), [(1, 3, 1, 1), (37, 33, 16, 2), (20, 70, 5, 4)])
def test_gradients_are_the_reference_s(
    backend: str, length: int, width: int, states: int, groups: int, kept: int | None, plain: bool
) -> None:
    a = arguments(3, length, width, states, groups, kept=kept and min(kept, length), plain=plain)
    reverse = [g % 2 == 1 for g in range(groups)]
    grads = {}
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaves = {
            k: v.to(dtype).detach().requires_grad_() if isinstance(v, Tensor) and k != "emit" else v
            for k, v in a.items()
        }
        y = channel_last_scan(**leaves, reverse=reverse, backend=name)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
        y.backward(upstream.to(dtype))
        grads[name] = {k: v.grad for k, v in leaves.items() if isinstance(v, Tensor) and k != "emit"}
    for key, expected in grads["reference"].items():
        assert expected is not None
        if expected.abs().max() > 0:
            close(grads[backend][key], expected, 1e-4)


@pytest.mark.parametrize("backend", NAMES)
def test_a_gap_is_what_pruned_positions_would_have_done(backend: str) -> None:
    """The scan over kept positions with gaps equals the full scan whose pruned positions have no input."""
    a = arguments(3, 30, 8, 4, plain=True)
    for reverse in (False, True):
        delta = torch.nn.functional.softplus(a["delta"])
        kept = torch.rand(3, 30).argsort(1)[:, :11].sort(1).values
        mask = torch.zeros(3, 30).scatter(1, kept, 1.0)[..., None]
        full = channel_last_scan(a["u"] * mask, delta, a["A"], a["B"], a["C"], reverse=reverse, backend=backend)
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
        found = channel_last_scan(
            a["u"][rows, kept], delta[rows, kept], a["A"], a["B"][rows, kept], a["C"][rows, kept],
            gap=gaps, reverse=reverse, backend=backend,
        )  # fmt: skip
        close(found, full[rows, kept].double(), 1e-5)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_its_own(backend: str, dtype: torch.dtype) -> None:
    a = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in arguments(2, 9, 6, 4).items()}
    found = channel_last_scan(**a, backend=backend)
    assert found.dtype == dtype
    close(found, by_hand([False], **a), 0.02 if dtype == torch.float16 else 0.1)


@pytest.mark.parametrize("backend", NAMES)
def test_nan_is_not_swallowed(backend: str) -> None:
    for name in ("u", "delta", "B", "C", "z", "A"):
        a = arguments(1, 6, 4, 3)
        a[name].view(-1)[0] = torch.nan
        assert channel_last_scan(**a, backend=backend).isnan().any(), name


@pytest.mark.parametrize("backend", NAMES)
def test_empty_batches_and_strided_inputs(backend: str) -> None:
    empty = arguments(0, 5, 4, 3)
    assert channel_last_scan(**empty, backend=backend).shape == (0, 5, 4)
    a = arguments(2, 7, 5, 3, plain=True)
    strided = {k: v.transpose(-1, -2).contiguous().transpose(-1, -2) if k != "A" else v for k, v in a.items()
               if isinstance(v, Tensor)}  # fmt: skip
    found = channel_last_scan(**strided, delta_softplus=True, backend=backend)
    close(found, by_hand([False], **a), 1e-5)


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


@pytest.mark.parametrize("backend", NAMES)
def test_the_operator_is_well_formed(backend: str) -> None:
    a = arguments(2, 5, 3, 2, dtype=torch.float32)
    tensors = [v.requires_grad_() if v.is_floating_point() else v for v in a.values() if isinstance(v, Tensor)]
    u, delta, A, B, C, D, z, bias, gap = tensors
    torch.library.opcheck(
        torch.ops.prunefront.selective_scan.default,
        (u, delta, A, B, C, D, z, bias, gap, None, True, [0], backend),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_mamba_s_shapes() -> None:
    """(b, D, L) in and out, with B and C as (b, N, L) or (b, G, N, L)."""
    a = arguments(2, 6, 4, 3)
    expected = by_hand([False], **a)
    moved = {k: v.movedim(1, -1) if k in ("u", "delta", "z", "gap") else v for k, v in a.items() if k != "emit"}
    grouped = {**moved, "B": a["B"].permute(0, 2, 3, 1), "C": a["C"].permute(0, 2, 3, 1)}
    single = {**moved, "B": a["B"][:, :, 0].transpose(1, 2), "C": a["C"][:, :, 0].transpose(1, 2)}
    for form in (grouped, single):
        found = selective_scan(**form)
        assert found.shape == (2, 4, 6)
        close(found.movedim(1, -1), expected, 1e-5)


def test_wrong_shapes_and_names_are_refused() -> None:
    a = arguments(2, 6, 4, 3)
    for key, wrong in (("delta", a["delta"][:, :5]), ("A", a["A"][:3]), ("B", a["B"][:, :5])):
        with pytest.raises(ValueError, match="selective_scan"):
            channel_last_scan(**{**a, key: wrong})
    with pytest.raises(ValueError, match="unknown scan backend"):
        channel_last_scan(**a, backend="quantum")


def test_the_cpu_s_backend_is_compiled() -> None:
    assert scan_backend(torch.device("cpu")) == scan_backend("cpu") == "cpu"


def test_without_numba_scans_run_in_torch_with_one_warning() -> None:
    """In a process where numba cannot be imported."""
    script = """
import sys, warnings
sys.modules["numba"] = None
import torch
from ssm_models.scan import channel_last_scan
x = torch.ones(1, 3, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y = channel_last_scan(x, x, -torch.ones(2, 4), torch.ones(1, 3, 4), torch.ones(1, 3, 4))
found = [str(w.message) for w in caught if "numba" in str(w.message)]
assert len(found) == 1, found
assert y.isfinite().all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
