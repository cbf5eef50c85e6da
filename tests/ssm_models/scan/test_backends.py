"""Which backend computes a scan: by device and what is installed, or forced."""

import subprocess
import sys
import warnings

import pytest
import torch

from ssm_models.scan import backends
from ssm_models.scan.backends import NAMES, VARIABLE, available, scan_backend
from tests.patience import PATIENCE


def test_the_cpu_s_backend_is_compiled() -> None:
    assert scan_backend(torch.device("cpu")) == scan_backend("cpu") == "cpu"


def test_every_backend_runs_or_says_why_not() -> None:
    found = available()
    assert tuple(found) == NAMES
    assert found["reference"] is None
    for name in (name for name, reason in found.items() if reason):
        with pytest.raises(ValueError, match=f"scan backend '{name}' needs .*available here: reference"):
            backends.get(name)


def test_the_fastest_that_is_there_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: dict[str, str] = {}
    monkeypatch.setattr(backends, "_missing", missing.get)
    found = []
    for name in (None, "triton", "mamba_ssm", "cpu"):
        if name:
            missing[name] = "needs something"
        backends._fastest.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append((scan_backend("cuda"), scan_backend("cpu"), scan_backend("cuda"), len(caught)))
    backends._fastest.cache_clear()
    assert found == [
        ("triton", "cpu", "triton", 0), ("mamba_ssm", "cpu", "mamba_ssm", 0),
        ("reference", "cpu", "reference", 1), ("reference", "reference", "reference", 2),
    ]  # fmt: skip


def test_a_process_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    u = torch.ones(1, 2, 3)
    monkeypatch.setenv(VARIABLE, "reference")
    assert scan_backend("cpu") == scan_backend("cuda") == backends.choose(u) == "reference"
    assert backends.choose(u, "cpu") == "cpu"  # what a call asks for comes first
    for wrong, message in (("quantum", "unknown scan backend"), ("mamba_ssm", "needs mamba-ssm")):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"{VARIABLE}.*{message}.*reference, cpu"):
            backends.choose(u)


def test_a_backend_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'cpu' does not run on 'meta' devices; available for them: reference"):
        backends.choose(torch.ones(1, 2, 3, device="meta"), "cpu")


def test_float64_runs_on_the_reference() -> None:
    u = torch.ones(1, 2, 3, dtype=torch.float64)
    assert backends.choose(u) == backends.choose(u, "cpu") == "reference"


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
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=PATIENCE)
