"""What only the compiled backend can get wrong: its exp, its threads, the memory it reads, and takes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from ssm_models.scan import cpu, cpu_kernels
from ssm_models.scan.arguments import ScanArguments
from ssm_models.scan.cpu_kernels import LANES
from tests.patience import PATIENCE

NOTHING: dict[str, Any] = dict.fromkeys(("D", "z", "delta_bias", "gap", "emit", "orders", "B_orders"))


def inputs(batch: int, length: int, channels: int, states: int, groups: int = 1, paths: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    orders = torch.rand(1, paths, length, generator=generator).argsort(-1)
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels),
        "gap": normal(batch, length, channels).abs(),
        "emit": None,
        "orders": orders if paths else None,
        "B_orders": normal(1, paths, length, states) if paths else None,
        "delta_softplus": True,
        "reverse": [g % 2 for g in range(groups)],
    }


def forward(**arguments: Any) -> Tensor:
    return cpu.forward(ScanArguments(**arguments))


def backward(grad: Tensor, **arguments: Any) -> list[Tensor]:
    """Return the gradients of the inputs that are present."""
    given = ScanArguments(**arguments)
    gradients = cpu.backward(grad, given)
    return [gradients.of(name) for name, x in given.differentiable().items() if x is not None]


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back, and share even small inputs out."""
    before, alone = torch.get_num_threads(), cpu._ALONE
    cpu._ALONE = 1
    yield
    torch.set_num_threads(before)
    cpu._ALONE = alone


def elementwise(function: Any) -> Any:
    @njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def run(x: Any, out: Any) -> None:
        for i in range(0, x.size, LANES):
            cpu_kernels._store(out, (i,), function(cpu_kernels._load(x, (i,))))

    def apply(x: Any) -> Any:
        padded = np.zeros(-(-x.size // LANES) * LANES, np.float32)
        padded[: x.size] = x
        out = np.empty_like(padded)
        run(padded, out)
        return out[: x.size]

    return apply


def test_exp2_is_exact_to_float32_over_its_whole_range() -> None:
    exp2 = elementwise(cpu_kernels._exp2)
    x = np.concatenate([np.linspace(-126, 127.99, 2_000_003), np.linspace(-1, 1, 1_000_003), np.arange(-126, 128)])
    x = x.astype(np.float32)
    expected = np.exp2(x.astype(np.float64))
    assert np.abs(exp2(x) / expected - 1).max() < 3e-7
    assert (exp2(np.arange(-126, 128, dtype=np.float32)) == np.exp2(np.arange(-126.0, 128.0))).all()
    low = exp2(np.linspace(-200, -126, 100_001, dtype=np.float32))
    assert ((low >= 0) & (low < 1.2e-38)).all()
    assert (exp2(np.array([-127.0, -1e30, -np.inf], np.float32)) == 0).all()
    assert (exp2(np.array([128.0, 1e30, np.inf], np.float32)) == np.inf).all()
    assert np.isnan(exp2(np.array([np.nan], np.float32))).all()


def test_softplus_and_sigmoid_keep_their_small_values() -> None:
    x = np.concatenate([np.linspace(-85, 85, 1_000_003), np.linspace(-1, 1, 100_003), [1e30, np.inf]])
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    for function, expected in (
        (cpu_kernels._softplus, np.logaddexp(0, wide)),
        (cpu_kernels._sigmoid, 1 / (1 + np.exp(-wide))),
    ):
        found = elementwise(function)(x)
        finite = np.isfinite(expected)
        # The argument's own rounding, times log2 e, costs |x| times float32's half unit.
        with np.errstate(invalid="ignore"):
            error = np.abs(found / expected - 1)
        assert (error[finite] < 4e-7 + 1e-7 * np.minimum(np.abs(wide[finite]), 90)).all()
        assert (found[~finite] == expected[~finite]).all()
        assert elementwise(function)(np.array([-np.inf], np.float32)) == 0
        assert np.isnan(elementwise(function)(np.array([np.nan, -np.nan], np.float32))).all()


def test_every_nan_reaches_the_output() -> None:
    """Also one whose low bits are set, which adding to the exponent would make a number of."""
    for bits in (0x7FC00000, 0x7FC00001, -1):
        nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "gap"):
            for paths in (0, 2):
                arguments = inputs(1, 6, 5, 3, paths=paths)
                arguments[name].view(-1)[0] = nan[0]
                assert forward(**arguments)[0, :, 0].isnan().any(), (name, bits, paths)


def test_a_state_decays_to_nothing_and_does_not_come_back() -> None:
    arguments = inputs(1, 8, 40, 4)
    arguments["gap"] = torch.full_like(arguments["u"], 1e6)
    alone = forward(**{**arguments, "gap": torch.full_like(arguments["u"], torch.inf)})
    assert alone.isfinite().all()
    assert torch.equal(forward(**arguments), alone)


@pytest.mark.parametrize(("groups", "paths"), [(2, 0), (1, 3)])
def test_neither_threads_nor_the_other_images_change_a_value(groups: int, paths: int, threads: None) -> None:
    arguments = inputs(5, 40, 70 * groups, 7, groups, paths)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(forward(**arguments))
    alone = {k: v[3:4] if isinstance(v, Tensor) and len(v) == 5 and v.dim() > 2 else v for k, v in arguments.items()}
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][3:4], forward(**alone))


@pytest.mark.parametrize(("groups", "paths"), [(2, 0), (1, 3)])
def test_gradients_do_not_depend_on_the_run(groups: int, paths: int, threads: None) -> None:
    arguments = inputs(3, 21, 40 * groups, 5, groups, paths)
    grad = torch.randn(3, 21, 40 * groups)
    torch.set_num_threads(2)
    first = backward(grad, **arguments)
    assert all(torch.equal(x, y) for _ in range(5) for x, y in zip(first, backward(grad, **arguments), strict=True))
    torch.set_num_threads(1)
    for x, y in zip(first, backward(grad, **arguments), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_slices_of_one_projection_are_read_where_they_lie() -> None:
    arguments = inputs(2, 9, 40, 6)
    projected = torch.cat([arguments[key] for key in ("u", "delta", "z", "gap")], 2)
    sliced = {**arguments, **dict(zip(("u", "delta", "z", "gap"), projected.split(40, 2), strict=True))}
    small = torch.cat([arguments["B"], arguments["C"]], 3)
    sliced["B"], sliced["C"] = small.split(6, 3)
    assert torch.equal(forward(**arguments), forward(**sliced))
    for array, tensor in ((cpu._array(sliced[key]), sliced[key]) for key in ("u", "delta", "z", "gap", "B", "C")):
        assert array.ctypes.data == tensor.data_ptr()
    turned = {k: v.transpose(1, 2).contiguous().transpose(1, 2) if k in ("u", "delta", "z") else v
              for k, v in arguments.items()}  # fmt: skip
    assert torch.equal(forward(**arguments), forward(**turned))
    grad = torch.randn(2, 9, 40)
    for x, y in zip(backward(grad, **arguments), backward(grad, **sliced), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("channels", [1, LANES - 1, LANES, LANES + 1])
def test_nothing_is_written_past_the_last_channel(channels: int) -> None:
    arguments = {**inputs(1, 5, channels, 3), **NOTHING}
    wide = torch.full((1, 5, channels + 2 * LANES), 7.0)
    kernel, given = cpu_kernels.forward(), ScanArguments(**arguments)
    kernel(0, cpu._items(given), *cpu._kernel_inputs(given).flatten(), wide.numpy()[:, :, LANES : LANES + channels])
    assert torch.equal(wide[:, :, LANES : LANES + channels], forward(**arguments))
    assert (wide[:, :, :LANES] == 7).all()
    assert (wide[:, :, LANES + channels :] == 7).all()


MEMORY = """
import torch
from pathlib import Path
from ssm_models.scan import cpu
from ssm_models.scan.arguments import ScanArguments

def inputs(batch):
    B, C = torch.randn(2, batch, 196, 1, 16)
    return ScanArguments(*torch.randn(2, batch, 196, 512), -torch.rand(512, 16), B, C, *[None] * 7, True, [0])

def rise(run):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    resident = lambda key: next(int(line.split()[1]) for line in lines() if line.startswith(key)) * 1024
    lines = lambda: Path("/proc/self/status").read_text().splitlines()
    before = resident("VmRSS")
    result = run()
    return resident("VmHWM") - before, result

torch.set_num_threads(2)
small, large = inputs(1), inputs(64)
cpu.backward(cpu.forward(small), small)
forward, out = rise(lambda: cpu.forward(large))
backward, gradients = rise(lambda: cpu.backward(out, large))
print(forward, out.nbytes, backward, sum(gradients.of(name).nbytes for name in ("u", "delta", "A", "B", "C")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_comes_out() -> None:
    """Forward takes its output and no more; backward the gradients, and per thread some rows and small gradients."""
    root = Path(cpu.__file__).parents[2]
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", MEMORY], cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    forward_rise, out, backward_rise, gradients = map(int, found.stdout.split()[-4:])
    assert out < forward_rise + 1e6 < out + 3e6
    assert gradients < backward_rise + 1e6 < gradients + 12e6


def test_it_compiles_where_numba_may_write_nowhere() -> None:
    program = (
        "import torch; from ssm_models.scan import cpu_kernels, selective_scan; print(cpu_kernels.cache_folder()); "
        "x, weights = torch.ones(1, 2, 3), torch.ones(1, 1, 1, 3); "
        "print(selective_scan(x, x, -torch.ones(2, 1), weights, weights, backend='cpu').isfinite().all().item())"
    )
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "True"]
