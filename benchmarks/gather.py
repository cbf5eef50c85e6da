"""Time of taking tokens out and putting them back: whole rows of a table against torch's gather and scatter.

Both run in turn in this process; the result is the median of the rounds' ratios. Half of the tokens of each image are
chosen at random and kept in raster order.

    python benchmarks/gather.py [--rounds 25]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ssm_models.gather import add, put, take

SHAPES = ((8, 197, 384), (8, 196, 896), (64, 64, 128), (16, 576, 64))  # images, tokens, channels


def gather(x: Tensor, index: Tensor) -> Tensor:
    """What `take` is compared with."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def scatter(x: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """What `put` is compared with."""
    return x.scatter(1, index[..., None].expand(-1, -1, x.shape[2]), tokens)


def scatter_add(x: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """What `add` is compared with."""
    return x.scatter_add(1, index[..., None].expand(-1, -1, x.shape[2]), tokens)


def milliseconds(run: Callable[[], Tensor], gradients: bool) -> float:
    """Time one run on the CPU, with its backward pass if asked for."""
    began = time.perf_counter()
    with torch.set_grad_enabled(gradients):
        result = run()
    if gradients:
        torch.autograd.backward(result, torch.ones_like(result))
    return 1e3 * (time.perf_counter() - began)


def main() -> None:
    """Print a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    a = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    print("| images, tokens, channels | what | gradients | as rows, ms | by channel, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for batch, length, channels in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, length, channels, generator=generator, requires_grad=True)
        order = torch.rand(batch, length, generator=generator).argsort(1)
        index = order[:, : length // 2].sort(1).values
        tokens = torch.randn(batch, length // 2, channels, generator=generator, requires_grad=True)
        cases: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
            "take": (partial(take, x, index), partial(gather, x, index)),
            "put": (partial(put, x, index, tokens), partial(scatter, x, index, tokens)),
            "add": (partial(add, x, index, tokens), partial(scatter_add, x, index, tokens)),
        }
        for name, (ours, rival) in cases.items():
            if not torch.equal(ours(), rival()):
                raise SystemExit(f"{name}: the two differ")
            for gradients in (False, True):
                times = [(milliseconds(ours, gradients), milliseconds(rival, gradients)) for _ in range(a.rounds + 3)]
                mine, other = (statistics.median(column) for column in zip(*times[3:], strict=True))
                ratio = statistics.median(theirs / our for our, theirs in times[3:])
                print(
                    f"| {batch}, {length}, {channels} | {name} | {'yes' if gradients else 'no'} | {mine:.3f} | "
                    f"{other:.3f} | {ratio:.1f} |"
                )


if __name__ == "__main__":
    main()
