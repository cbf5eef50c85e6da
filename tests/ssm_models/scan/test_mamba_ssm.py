"""The adapter to mamba-ssm, on a stand-in for the library's function: its CUDA kernel is not needed here.

The shared suite in test_ops.py runs on the stand-in too, where the library is not installed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.scan import backends, channel_last_scan


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Tensor:  # fmt: skip
    """What mamba-ssm documents as `selective_scan_ref`: (b, D, L), B and C (b, G, N, L), computed in float32."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype and (z is None or z.dtype == u.dtype), "as the kernel asks"
    assert all(x is None or x.dtype == torch.float32 for x in (A, D, delta_bias)), "as the kernel asks"
    dtype, (batch, channels, length) = u.dtype, u.shape
    u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    B, C = (x.repeat_interleave(channels // x.shape[1], 1) for x in (B, C))
    h, out = A.new_zeros(batch, *A.shape), []
    for t in range(length):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[..., t]
        out.append((h * C[..., t]).sum(-1))
    y = torch.stack(out, -1)
    y = y if D is None else y + u * D[:, None]
    return (y if z is None else y * F.silu(z.float())).to(dtype)


@contextmanager
def stand_in() -> Iterator[None]:
    """Let the backend run on `selective_scan_fn`, as if the library were installed."""
    library = ModuleType("mamba_ssm.ops.selective_scan_interface")
    library.selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]
    parents = {name: ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops")}
    real = backends._missing
    with (
        mock.patch.dict(sys.modules, {**parents, library.__name__: library}),
        mock.patch.object(backends, "_missing", lambda name: None if name == "mamba_ssm" else real(name)),
        mock.patch.dict(backends._BY_DEVICE, {"cpu": ("cpu", "mamba_ssm")}),
    ):
        backends.get.cache_clear()
        yield
    backends.get.cache_clear()


def test_without_extras_the_library_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gap, no flip, no gather: one call, with D and the gate inside."""
    calls = []

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append([args, kwargs])
        return selective_scan_fn(*args, **kwargs)  # type: ignore[arg-type]

    x = torch.randn(2, 5, 4)
    with stand_in():
        monkeypatch.setattr(sys.modules["mamba_ssm.ops.selective_scan_interface"], "selective_scan_fn", counted)
        channel_last_scan(
            x, x, -torch.ones(4, 3), x[..., :3], x[..., :3], torch.ones(4), x, backend="mamba_ssm"
        )  # fmt: skip
    ((arguments, _),) = calls
    assert all(isinstance(argument, Tensor) for argument in arguments[5:7])
    assert arguments[0].shape == (2, 4, 5)
    assert arguments[3].shape == (2, 1, 3, 5)


@pytest.mark.skipif(backends.available()["mamba_ssm"] is None, reason="mamba-ssm is installed")
def test_where_it_is_not_built_the_error_says_so() -> None:
    with pytest.raises(ValueError, match=r"selective_scan_cuda.*available here: reference"):
        backends.get("mamba_ssm")
