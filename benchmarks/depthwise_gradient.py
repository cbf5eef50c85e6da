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

SHAPES = ((64, 128, 8, 7), (8, 384, 14, 7), (8, 896, 14, 7))  # images, channels, side of the grid, side of the kernel


def of_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `depthwise_conv` is compared with."""
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=len(weight))


def milliseconds(conv: Callable[..., Tensor], x: Tensor, weight: Tensor, upstream: Tensor) -> float:
    """Time one backward pass, to the images and the weights."""
    y = conv(x, weight, None)
    began = time.perf_counter()
    torch.autograd.grad(y, (x, weight), upstream)
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Print a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    a = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    print("| images, channels, grid, kernel | torch, ms | ours, ms | ratio | the forward pass, ms |")
    print("| --- | --- | --- | --- | --- |")
    for batch, channels, grid, side in SHAPES:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(2, batch, grid * grid, channels, generator=generator)
        x, upstream = tokens.transpose(2, 3).reshape(2, batch, channels, grid, grid)  # channels-last, as in a model
        x.requires_grad_()
        weight = torch.randn(channels, 1, side, side, generator=generator, requires_grad=True)
        times, forwards = [], []
        for _ in range(a.rounds + 2):
            times.append([milliseconds(conv, x, weight, upstream) for conv in (of_torch, depthwise_conv)])
            began = time.perf_counter()
            with torch.no_grad():
                of_torch(x, weight, None)
            forwards.append(1e3 * (time.perf_counter() - began))
        theirs, ours = (statistics.median(column) for column in zip(*times[2:], strict=True))
        ratio = statistics.median(theirs / ours for theirs, ours in times[2:])
        shape = f"{batch}, {channels}, {grid}², {side}²"
        print(f"| {shape} | {theirs:.2f} | {ours:.2f} | {ratio:.1f} | {statistics.median(forwards[2:]):.2f} |")


if __name__ == "__main__":
    main()
