"""The backends of the selective scan, chosen by device, dtype and what is installed.

The environment variable PRUNEFRONT_SCAN_BACKEND forces one for a whole process, the argument `backend` for one call.
Backends are imported on first use, so that a machine without a GPU needs none of the GPU libraries.
"""

import os
import shutil
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from spaces.errors import BackendError

NAMES = ("reference", "cpu", "triton", "mamba_ssm")
VARIABLE = "PRUNEFRONT_SCAN_BACKEND"

# The fastest first; the reference runs everywhere.
_BY_DEVICE = {"cpu": ("cpu",), "cuda": ("triton", "mamba_ssm")}


def available() -> dict[str, str | None]:
    """Return every backend's name with the reason why it cannot run here; None where it can."""
    return {name: _missing(name) for name in NAMES}


@cache
def get(name: str) -> ModuleType:
    """Return the backend's module: `forward(arguments)` and `backward(grad, arguments)` on `ScanArguments`.

    Raises:
        BackendError: no such backend, or it cannot run here; the message says which can.
    """
    _require(name)
    return import_module(f"ssm_models.scan.{name}")


def choose(u: Tensor, forced: str | None = None) -> str:
    """Return the name of the backend for this input, or check the one that is forced.

    float64 always runs on the reference: the others compute in float32.

    Raises:
        BackendError: the backend that is forced is not known, or cannot run here or on this device.
    """
    name = scan_backend(u.device) if forced is None else _checked(forced, u.device.type)
    return "reference" if u.dtype == torch.float64 else name


def scan_backend(device: torch.device | str) -> str:
    """Return the name of the backend for a device: the one that PRUNEFRONT_SCAN_BACKEND names, or the fastest.

    Warns once if only the reference can run, which is slow.

    Raises:
        BackendError: PRUNEFRONT_SCAN_BACKEND names a backend that is unknown or cannot run here.

    >>> scan_backend("cpu")
    'cpu'
    """
    kind = torch.device(device).type
    forced = os.environ.get(VARIABLE)
    if not forced:
        return _fastest(kind)
    try:
        return _checked(forced, kind)
    except BackendError as error:
        raise BackendError(f"{VARIABLE}: {error}") from None


@cache
def _fastest(kind: str) -> str:
    reasons = []
    for name in _BY_DEVICE.get(kind, ()):
        reason = _missing(name)
        if reason is None:
            return name
        reasons.append(f"scan backend {name!r} {reason}")
    why = "; ".join(reasons) or f"no scan backend is made for {kind!r} devices"
    warnings.warn(f"{why}; selective scans run in plain torch, many times slower", stacklevel=4)
    return "reference"


def _require(name: str) -> None:
    if name not in NAMES:
        raise BackendError(f"unknown scan backend {name!r}: expected one of {_those_that_run()}")
    reason = _missing(name)
    if reason is not None:
        raise BackendError(f"scan backend {name!r} {reason}; available here: {_those_that_run()}")


def _checked(name: str, kind: str) -> str:
    """Return the name of a backend that was asked for, if it runs on this kind of device."""
    _require(name)
    if not _runs_on(name, kind):
        fit = ", ".join(other for other in NAMES if _missing(other) is None and _runs_on(other, kind))
        raise BackendError(f"scan backend {name!r} does not run on {kind!r} devices; available for them: {fit}")
    return name


def _runs_on(name: str, kind: str) -> bool:
    interpreted = name == "triton" and kind == "cpu" and _interpreting()
    return name == "reference" or name in _BY_DEVICE.get(kind, ()) or interpreted


def _those_that_run() -> str:
    return ", ".join(name for name, reason in available().items() if reason is None)


@cache
def _missing(name: str) -> str | None:
    """Return why a backend cannot run here, to complete a sentence that begins with its name; None if it can."""
    if name == "cpu":
        try:
            # A statement, since torch.compile looks through this function and knows no import_module.
            from ssm_models.scan import cpu  # noqa: F401
        except ImportError as error:
            return f"needs numba, which cannot be imported: {error}"
    if name == "triton":
        if find_spec("triton") is None:
            return "needs triton, which is not installed"
        if _interpreting():
            return None
        if not torch.cuda.is_available():
            return "needs a CUDA GPU, and torch sees none"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "needs a C compiler for triton's launchers: gcc or clang, or its path in CC"
    if name == "mamba_ssm":
        # `import mamba_ssm` itself fails without its extension.
        if find_spec("selective_scan_cuda") is None:
            return "needs mamba-ssm built with selective_scan_cuda, which is not installed"
        if not torch.cuda.is_available():
            return "needs a CUDA GPU, and torch sees none"
        try:
            import_module("mamba_ssm.ops.selective_scan_interface")
        except ImportError as error:
            return f"needs mamba-ssm, which cannot be imported: {error}"
    return None


def _interpreting() -> bool:
    """Return whether triton's kernels run in its interpreter, on the CPU, to test them without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
