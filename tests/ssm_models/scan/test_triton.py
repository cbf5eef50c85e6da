"""Triton's kernels without a GPU: interpreted for their values, and compiled as far as the machine code."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from ssm_models.scan import triton as backend
from ssm_models.scan.arguments import ScanArguments
from tests.patience import PATIENCE

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ROOT = Path(__file__).parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the shared suite runs on the GPU itself")
def test_the_shared_suite_in_the_interpreter() -> None:
    """In a process of its own: triton decides when it is imported whether it interprets."""
    suite = Path(__file__).with_name("test_ops.py")
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "triton", str(suite)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 40, done.stdout


def inputs(
    dtype: torch.dtype, *, states: int = 16, groups: int = 1, kept: int | None = None, paths: int = 0,
    plain: bool = False,
) -> ScanArguments:  # fmt: skip
    """Arguments that are never read: the kernels are compiled for their types and alignment."""
    batch, length, channels = 2, 48, 64 * groups
    emits = kept or length

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    full = torch.float32
    return ScanArguments(
        empty(batch, length, channels), empty(batch, length, channels), empty(channels, states, dtype=full),
        empty(batch, length, groups, states), empty(batch, length if paths else emits, groups, states),
        None if plain else empty(channels, dtype=full), None if plain else empty(batch, emits, channels),
        None if plain else empty(channels, dtype=full), None if plain else empty(batch, length, channels),
        torch.arange(kept).repeat(batch, 1) if kept else None,
        empty(1, paths, length, dtype=torch.int64) if paths else None,
        None if plain or not paths else empty(1, paths, length, states, dtype=full),
        not plain, [g % 2 for g in range(groups)],
    )  # fmt: skip


class Recorder:
    """Stand in the place of a kernel and keep what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, []  # type: ignore[var-annotated]

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.launches.append(arguments)


def compiled(kernel: Any, arguments: dict[str, Any]) -> Any:
    """Compile for an H100 as a launch would: by the types, the alignment and the constants of its arguments."""
    signature, constants, alignment = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value, free = arguments[parameter.name], parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        elif value is None or parameter.is_constexpr or (value == 1 and not free):
            signature[parameter.name], constants[parameter.name], aligned = "constexpr", value, False
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            aligned = value % 16 == 0 and not free
        if aligned:
            alignment[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=alignment)
    options = {name: arguments[name] for name in ("num_warps", "enable_fp_fusion")}
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.skipif(INTERPRETED or not CUOBJDUMP.exists(), reason="needs triton's compiler for NVIDIA GPUs")
@pytest.mark.parametrize(
    "case",
    [
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "groups": 2, "plain": True},
        {"dtype": torch.float32, "kept": 5},
        {"dtype": torch.bfloat16, "paths": 4},
        {"dtype": torch.float32, "paths": 3, "kept": 5, "states": 5},
        {"dtype": torch.bfloat16, "groups": 4, "states": 1},
    ],
    ids=str,
)
def test_the_kernels_compile(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the machine code of a GPU that is not here, states in registers; forwards nothing waits for another lane."""
    recorders = {name: Recorder(getattr(backend.kernels, name)) for name in ("scan", "reverse_scan")}
    for name, recorder in recorders.items():
        monkeypatch.setattr(backend.kernels, name, recorder)
    arguments = inputs(**case)
    out = backend.forward(arguments)
    backend.backward(torch.empty_like(out), arguments)
    assert [len(recorder.launches) for recorder in recorders.values()] == [2, 1]
    for recorder in recorders.values():
        for launch in recorder.launches:
            kernel = compiled(recorder.kernel, launch)
            cubin = tmp_path / "kernel.cubin"
            cubin.write_bytes(kernel.asm["cubin"])
            used = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True)
            (stack,) = re.findall(r"STACK:(\d+)", used.stdout)
            assert int(stack) <= 64, used.stdout  # a few addresses may be spilled, a chunk of states not
            if recorder.kernel is recorders["scan"].kernel and not case.get("paths") and case.get("states") != 1:
                assert "bar.sync" not in kernel.asm["ptx"], "the states of a channel have left their lane"


@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize("states", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("width", [1, 5, 96, 768])
def test_tiles_fit_a_warp_s_registers(width: int, states: int, directions: int) -> None:
    lanes, each = backend._tile(width, directions, states)
    assert lanes * each < 2 * max(width, 2)
    assert lanes * each * states * directions <= max(512, states * directions)
    forward = backend._lanes(128 * width, width, states * directions, torch.device("cpu"))
    assert forward < 2 * max(width, 2)
    assert forward * states * directions <= max(1024, 4 * states * directions)
