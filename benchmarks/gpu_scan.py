"""The selective scan on a GPU: triton against mamba-ssm's CUDA kernel and against the floor of memory bandwidth.

    python benchmarks/gpu_scan.py [--rounds 30] [--lengths 197 1024 4096]

The shapes are those of Vim-S (D 768, N 16) and PlainMamba-L3 (D 896, N 16, 4 directions over the same tokens),
the batch such that b x L is about 128 x 197. The floor is the bytes of all inputs and outputs, each moved once,
at the bandwidth that a copy reaches on this device; forward and backward it is that of both. A ratio of 1 cannot
be reached: 16 exponentials a channel and position take an H100's special-function units longer than its memory
takes to bring the channel. `library` is mamba-ssm's function on tensors in its own layout, where it can do the
case; `mamba_ssm` is the operator on top of it, with the copies, flips, gathers and gap trick that the case needs.

mamba-ssm is optional. Where no wheel fits torch and CUDA, build it for the one GPU in front of you (9.0 is an H100 or
H200, 8.0 an A100), with the nvcc of torch's own CUDA version:

    git clone --depth 1 --branch v2.3.2.post1 https://github.com/state-spaces/mamba && cd mamba
    export MAMBA_FORCE_BUILD=TRUE TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=8
    pip install ninja packaging setuptools wheel einops && pip install --no-build-isolation --no-deps .

MAMBA_FORCE_BUILD keeps it from looking for a wheel. This version of setup.py has its architectures written out and
does not read TORCH_CUDA_ARCH_LIST (state-spaces/mamba#625): leave only the lines "-gencode" and
"arch=compute_90,code=sm_90" of its `cc_flag` before the build, or wait several times longer. Later versions build the
kernel only when asked to (see their setup.py). `prunefront doctor` then says that mamba_ssm can run here.
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ssm_models.scan import channel_last_scan
from ssm_models.scan.backends import available

TOKENS = 128 * 197
MODELS = {"Vim-S": {"channels": 768, "paths": 0}, "PlainMamba-L3": {"channels": 896, "paths": 4}}
STATES = 16
COLUMNS = ("triton", "mamba_ssm", "library")


def inputs(length: int, channels: int, paths: int, gapped: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Make the arguments of `channel_last_scan`; parameters are in float32, as under autocast."""
    batch = max(1, TOKENS // length)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    states = torch.arange(1, STATES + 1, device="cuda", dtype=torch.float32)
    return {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels),
        "A": -states.repeat(channels, 1),
        "B": normal(batch, length, 1, STATES),
        "C": normal(batch, length, 1, STATES),
        "D": normal(channels, dtype=torch.float32),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels, dtype=torch.float32) - 4,
        "gap": normal(batch, length, channels).abs() / 10 if gapped else None,
        "orders": torch.rand(1, paths, length, device="cuda").argsort(-1) if paths else None,
        "B_orders": normal(1, paths, length, STATES, dtype=torch.float32) if paths else None,
    }


def library(a: dict[str, Any]) -> Callable[[dict[str, Any]], Tensor] | None:
    """Return mamba-ssm's function on its own layout, which is made beforehand; None where it lacks something."""
    if a["gap"] is not None or a["orders"] is not None:
        return None
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(a: dict[str, Any]) -> Tensor:
        rest = {name: a[name] for name in ("D", "z", "delta_bias")}
        found: Tensor = selective_scan_fn(a["u"], a["delta"], a["A"], a["B"], a["C"], **rest, delta_softplus=True)
        return found

    return run


def channel_first(a: dict[str, Any]) -> dict[str, Any]:
    """Lay the arguments out as mamba-ssm has them: (b, D, L), B and C (b, 1, N, L)."""
    laid = {name: a[name].movedim(1, -1).contiguous() for name in ("u", "delta", "z", "B", "C")}
    return a | laid


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Return the median time of a run on the GPU."""
    for _ in range(3):  # compiles, and fills the allocator's pool
        run()
    times = []
    for _ in range(rounds):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(float(began.elapsed_time(ended)))
    return statistics.median(times)


def measure(run: Callable[[dict[str, Any]], Tensor], a: dict[str, Any], backwards: bool, rounds: int) -> float:
    """Time a run, with the gradients of everything that has one if `backwards`."""
    if not backwards:
        with torch.no_grad():
            return milliseconds(lambda: run(a), rounds)
    leaves = {k: v.detach().requires_grad_() for k, v in a.items() if isinstance(v, Tensor) and v.is_floating_point()}
    wanted, upstream = list(leaves.values()), torch.ones_like(run(a))
    return milliseconds(lambda: torch.autograd.grad(run(a | leaves), wanted, upstream), rounds)


def moved_bytes(a: dict[str, Any], backwards: bool) -> int:
    """Return the bytes of inputs and output, and backwards of inputs, the output's gradient and the inputs'."""
    sizes = {k: v.numel() * v.element_size() for k, v in a.items() if isinstance(v, Tensor)}
    forward = sum(sizes.values()) + sizes["u"]
    gradients = sum(size for k, size in sizes.items() if a[k].is_floating_point())
    return forward + (sum(sizes.values()) + sizes["u"] + gradients if backwards else 0)


def bandwidth() -> float:
    """Return the bytes a second that a large copy reads and writes."""
    x = torch.empty(2**28, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() * x.element_size() / (milliseconds(lambda: y.copy_(x), 20) / 1e3)


def operator(backend: str) -> Callable[[dict[str, Any]], Tensor]:
    """Return the operator on a backend."""
    return lambda a: channel_last_scan(**a, delta_softplus=True, backend=backend)


def times_of(a: dict[str, Any], able: list[str], backwards: bool, rounds: int) -> dict[str, float]:
    """Time a case on the backends that can run, and on mamba-ssm's own function where that can do it."""
    times = {name: measure(operator(name), a, backwards, rounds) for name in able}
    theirs = library(a) if "mamba_ssm" in able else None
    if theirs is not None:
        times["library"] = measure(theirs, channel_first(a), backwards, rounds)
    return times


def check() -> None:
    """Hold triton against the reference in float64, on this GPU, before any of its times is believed."""
    for paths in (0, 4):
        a = inputs(197, 64, paths, True, torch.float32)
        a = {k: v[:4] if isinstance(v, Tensor) and len(v) > 64 else v for k, v in a.items()}
        double = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in a.items()}
        found, expected = operator("triton")(a), operator("reference")(double)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"largest difference from the reference, {paths or 1} directions: {error:.1e} of the largest value")


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--lengths", type=int, nargs="+", default=[197, 1024, 4096])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: torch sees no CUDA device, so there is nothing to measure")
        return
    torch.manual_seed(0)
    reasons = available()
    for name in ("triton", "mamba_ssm"):
        if reasons[name]:
            print(f"{name} {reasons[name]}")
    rate = bandwidth()
    print(f"{torch.cuda.get_device_name()}, a copy moves {rate / 1e9:.0f} GB/s")
    print(f"milliseconds, medians of {options.rounds}")
    if reasons["triton"] is None:
        check()
    print(f"{'case':<44}" + "".join(f"{c:>11}" for c in (*COLUMNS, "floor", "tri/floor", "gap/plain")))
    able = [name for name in ("triton", "mamba_ssm") if reasons[name] is None]
    for model, length, dtype, backwards in product(
        MODELS, options.lengths, (torch.bfloat16, torch.float32), (False, True)
    ):
        plain = None
        for gapped in (False, True):
            a = inputs(length, MODELS[model]["channels"], MODELS[model]["paths"], gapped, dtype)
            times = times_of(a, able, backwards, options.rounds)
            floor, ours = moved_bytes(a, backwards) / rate * 1e3, times.get("triton")
            case = f"{model} b{len(a['u'])} L{length} {str(dtype)[6:]}" + " +grad" * backwards + " gaps" * gapped
            figures = (
                *(times.get(c) for c in COLUMNS),
                floor,
                ours and ours / floor,
                ours and plain and ours / plain,
            )
            print(f"{case:<44}" + "".join(f"{x:>11.3f}" if x else f"{'-':>11}" for x in figures), flush=True)
            plain = ours


if __name__ == "__main__":
    main()
