"""The selective scan on the CPU against mamba-ssm's `selective_scan_ref`, the loop that CPU users have today.

Both run in this process, in turn; what counts is the ratio of the medians. Run it on an idle machine:

    python benchmarks/scan.py [--batch 8 --channels 384 --length 197 --states 16]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.scan import selective_scan


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


def seconds(run: Callable[[], object]) -> float:
    """Return one run's time."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Print the medians and their ratio, forwards and with the gradients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 8), ("channels", 384), ("length", 197), ("states", 16), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.manual_seed(0)
    # As a model's linear layers leave them: channels last.
    u, delta, z = (torch.randn(a.batch, a.length, a.channels).transpose(1, 2) for _ in range(3))
    B, C = (torch.randn(a.batch, a.length, a.states).transpose(1, 2) for _ in range(2))
    A, D, bias = -torch.rand(a.channels, a.states) * 16, torch.randn(a.channels), torch.randn(a.channels) - 4
    inputs = (u, delta, A, B, C, D, z, bias)

    def backward(run: Callable[..., Tensor]) -> None:
        leaves = [x.detach().requires_grad_() for x in inputs]
        run(*leaves).sum().backward()

    cases: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {"loop": lambda: loop(*inputs), "fused": lambda: fused(*inputs)},
        "forward and backward": {"loop": lambda: backward(loop), "fused": lambda: backward(fused)},
    }
    error = (fused(*inputs) - loop(*inputs)).abs().max().item()
    print(f"B {a.batch}, D {a.channels}, L {a.length}, N {a.states}, {torch.get_num_threads()} threads; "
          f"largest difference {error:.1e}")  # fmt: skip
    for name, runs in cases.items():
        times: dict[str, list[float]] = {key: [] for key in runs}
        with torch.set_grad_enabled("backward" in name):
            for index in range(a.rounds + 2):
                for key, run in runs.items():
                    taken = seconds(run)
                    if index >= 2:  # the first compile and warm up
                        times[key].append(taken)
        slow, fast = (statistics.median(times[key]) for key in ("loop", "fused"))
        print(f"{name}: loop {1e3 * slow:.1f} ms, fused {1e3 * fast:.1f} ms, ratio {slow / fast:.1f}")


if __name__ == "__main__":
    main()
