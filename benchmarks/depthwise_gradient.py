"""Time of the backward pass of a depthwise convolution: `depthwise_conv` against torch's, in turn in this process.

OMP_NUM_THREADS=1 python benchmarks/depthwise_gradient.py [--rounds 15]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssm_models.families.depthwise_gradient import depthwise_conv

# Images, channels, rows and columns of the grid, of the kernel, zeros around the grid.
SHAPES = {
    "PlainMamba nano": (64, 128, (8, 8), (7, 7), (3, 3)),
    "PlainMamba-L3": (8, 896, (14, 14), (7, 7), (3, 3)),
    "Vim nano": (64, 128, (1, 68), (1, 4), (0, 0)),
    "Vim-S": (8, 768, (1, 200), (1, 4), (0, 0)),
}


def of_torch(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """What `depthwise_conv` is compared with."""
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


def milliseconds(conv: Callable[..., Tensor], inputs: tuple[Tensor, ...], padding: tuple[int, int]) -> float:
    """Time one backward pass."""
    y = conv(*inputs, padding)
    upstream = torch.ones(y.shape).contiguous(memory_format=torch.channels_last)
    began = time.perf_counter()
    torch.autograd.grad(y, inputs, upstream)
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Print a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    a = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    print("| convolution | torch, ms | ours, ms | ratio | the forward pass, ms |")
    print("| --- | --- | --- | --- | --- |")
    for name, (batch, channels, grid, sides, padding) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, channels, *grid, generator=generator).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(channels, 1, *sides, generator=generator), torch.zeros(channels)
        inputs = tuple(one.requires_grad_() for one in (x, weight, bias))
        times, forwards = [], []
        for _ in range(a.rounds + 2):
            times.append([milliseconds(conv, inputs, padding) for conv in (of_torch, depthwise_conv)])
            began = time.perf_counter()
            with torch.no_grad():
                of_torch(x, weight, bias, padding)
            forwards.append(1e3 * (time.perf_counter() - began))
        theirs, ours = (statistics.median(column) for column in zip(*times[2:], strict=True))
        ratio = statistics.median(theirs / ours for theirs, ours in times[2:])
        print(f"| {name} | {theirs:.2f} | {ours:.2f} | {ratio:.1f} | {statistics.median(forwards[2:]):.2f} |")


if __name__ == "__main__":
    main()
