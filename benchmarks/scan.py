"""The selective scan on the CPU against mamba-ssm's `selective_scan_ref`, the loop that CPU users have today.

Both run in turn in this process; the result is the ratio of the medians. So do the scan with PlainMamba's four orders
and four scans of gathered inputs, and a scan over half of the tokens with and without gaps. Peak memory is measured
in a process of its own (on Linux). Run it on an idle machine:

    python benchmarks/scan.py [--batch 8 --channels 384 --length 197 --states 16]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.scan import channel_last_scan, selective_scan


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Compute what mamba-ssm's reference does, in its order: discretise everything, then step through."""
    delta = F.softplus(delta + bias[..., None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state = u.new_zeros(len(u), *A.shape)
    rows = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + drive[:, :, t]
        rows.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    y = torch.stack(rows, 2)
    return (y + u * D[:, None]) * F.silu(z)


def fused(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Run the operator."""
    return selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)


def make_inputs(batch: int, channels: int, length: int, states: int) -> tuple[Tensor, ...]:
    """Return u, delta, A, B, C, D, z and bias in mamba-ssm's shapes, channel-last in memory, as models leave them."""
    u, delta, z = (torch.randn(batch, length, channels).transpose(1, 2) for _ in range(3))
    B, C = (torch.randn(batch, length, states).transpose(1, 2) for _ in range(2))
    return u, delta, -torch.rand(channels, states) * 16, B, C, torch.randn(channels), z, torch.randn(channels) - 4


def with_gradients(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run forwards and backwards; return the output and the gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = run(*leaves)
    return (y, *torch.autograd.grad(y.sum(), leaves))


def compare(
    name: str, slow: Callable[[], object], fast: Callable[[], object], labels: str, rounds: int, warm: int = 2
) -> None:
    """Print the medians of two functions, run in turn, and their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + warm):
        for taken, run in zip(times, (slow, fast), strict=True):
            began = time.perf_counter()
            run()
            if index >= warm:  # the first rounds compile and warm up
                taken.append(time.perf_counter() - began)
    a, b = (statistics.median(taken) for taken in times)
    first, second = labels.split("/")
    print(f"{name}: {first} {1e3 * a:.2f} ms, {second} {1e3 * b:.2f} ms, ratio {a / b:.2f}", flush=True)


def snake(side: int) -> Tensor:
    """Return PlainMamba's four orders of side² tokens, (1, 4, side²)."""
    grid = torch.arange(side * side).view(side, side)
    rows, columns = (
        torch.where(torch.arange(side)[:, None] % 2 == 0, x, x.flip(1)).flatten() for x in (grid, grid.T)
    )
    return torch.stack([rows, rows.flip(0), columns, columns.flip(0)])[None]


def orders(rounds: int, batch: int = 8, channels: int = 896, side: int = 14, states: int = 16) -> None:
    """Compare one scan with four orders and four scans of gathered inputs."""
    length, paths = side * side, snake(side)
    u, delta, z = (torch.randn(batch, length, channels) for _ in range(3))
    B, C, extra = (torch.randn(n, length, states) for n in (batch, batch, 4))
    A, D, bias = -torch.rand(channels, states) * 16, torch.randn(channels), torch.randn(channels) - 4
    back = paths.argsort(-1)

    def one() -> Tensor:
        return channel_last_scan(u, delta, A, B, C, D, z, bias, True, orders=paths, B_orders=extra[None])

    def four() -> Tensor:
        total = torch.zeros_like(u)
        for order, undo, add in zip(paths[0], back[0], extra, strict=True):
            y = channel_last_scan(u[:, order], delta, A, B + add, C, D, None, bias, True)
            total += y[:, undo]
        return total * F.silu(z)

    error = (one() - four()).abs().max().item() / one().abs().max().item()
    print(f"PlainMamba: B {batch}, D {channels}, L {length}, N {states}; largest relative difference {error:.1e}")
    compare("  forward", four, one, "four scans/one with orders", rounds)


def pruned(rounds: int, batch: int = 8, channels: int = 768, length: int = 98, states: int = 16) -> None:
    """Compare a scan with gaps and the same without."""
    u, delta, z = (torch.randn(batch, length, channels) for _ in range(3))
    gap = torch.rand(batch, length, channels)
    B, C = (torch.randn(batch, length, states) for _ in range(2))
    A, D, bias = -torch.rand(channels, states) * 16, torch.randn(channels), torch.randn(channels) - 4

    def run(gap: Tensor | None) -> Tensor:
        return channel_last_scan(u, delta, A, B, C, D, z, bias, True, gap)

    print(f"half of the tokens: B {batch}, D {channels}, L {length}, N {states}")
    compare("  forward", lambda: run(gap), lambda: run(None), "with gaps/without", rounds)


def memory(batch: int, channels: int, length: int, states: int, gradients: bool) -> None:
    """Print how far resident memory rose above the empty process, over the size of inputs and outputs."""

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return with_gradients(fused, inputs) if gradients else (fused(*inputs),)

    run(make_inputs(1, channels, length, states))  # the code is loaded, and the threads are there
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    inputs = make_inputs(batch, channels, length, states)
    both = (*inputs, *run(inputs))
    peak, size = resident("VmHWM") - before, sum(x.nbytes for x in both)
    print(f"{peak / 1e6:.1f} MB at the peak, {size / 1e6:.1f} MB of inputs and outputs, ratio {peak / size:.2f}")


def main() -> None:
    """Print the medians and their ratios, forwards and with the gradients, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 8), ("channels", 384), ("length", 197), ("states", 16), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", choices=["forward", "gradients"], help="print only this peak")
    a = parser.parse_args()
    shape = (a.batch, a.channels, a.length, a.states)
    torch.manual_seed(0)
    if a.memory:
        memory(*shape, a.memory == "gradients")
        return
    inputs = make_inputs(*shape)
    error = (fused(*inputs) - loop(*inputs)).abs().max().item()
    print(f"B {a.batch}, D {a.channels}, L {a.length}, N {a.states}, {torch.get_num_threads()} threads; "
          f"largest difference {error:.1e}")  # fmt: skip
    compare("forward", lambda: loop(*inputs), lambda: fused(*inputs), "loop/fused", a.rounds)
    # autograd's backward pass through the loop's slices takes half a minute
    compare("forward and backward", lambda: with_gradients(loop, inputs), lambda: with_gradients(fused, inputs),
            "loop/fused", max(1, a.rounds // 5), warm=1)  # fmt: skip
    for name in ("forward", "gradients") if sys.platform == "linux" else ():
        print(f"memory, {name}: ", end="", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--memory", name], check=True)
    orders(a.rounds)
    pruned(a.rounds)


if __name__ == "__main__":
    main()
