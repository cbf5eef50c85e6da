"""Who computes the selective scan: chosen by device, dtype and what is installed."""

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

NAMES = ("reference", "cpu")


@cache
def get(name: str) -> ModuleType:
    """Return the backend's module: `forward` and `backward` on the arguments of `ssm_models.scan.ops`.

    Raises:
        ValueError: no such backend, or it cannot run here; the message says which can.
    """
    if name == "reference":
        from ssm_models.scan import reference

        return reference
    if name == "cpu":
        try:
            from ssm_models.scan import cpu
        except ImportError as error:
            raise ValueError(f"scan backend 'cpu' needs numba, which cannot be imported: {error}") from error
        return cpu
    raise ValueError(f"unknown scan backend {name!r}: expected one of {', '.join(NAMES)}")


def choose(u: Tensor, forced: str | None = None) -> str:
    """Return the name of the backend for this input, or check the one that is forced."""
    if forced is not None:
        get(forced)
        return forced
    return "cpu" if u.dtype != torch.float64 and scan_backend(u.device) == "cpu" else "reference"


@cache
def scan_backend(device: torch.device | str) -> str:
    """Return the name of the fastest backend on this device; warns once where that is the slow one."""
    if torch.device(device).type == "cpu":
        try:
            get("cpu")
        except ValueError as error:
            warnings.warn(f"{error}; selective scans run in plain torch, many times slower", stacklevel=2)
        else:
            return "cpu"
    return "reference"
