"""The selective scan on the CPU: compiled loops that keep the states of some channels in the nearest cache.

A work item is one image, one group of channels (a scan direction) and one tile of its channels. Nothing of
size L × D × N is stored in the forward pass; the backward pass stores the states of one tile a thread.
The kernels release the GIL, and as many threads share the items as torch is set to use.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssm_models.scan import cpu_kernels as kernels

_ALONE = 200_000  # state-steps that are done before a second thread has woken up
_ABSENT = {ndim: np.empty((0,) * ndim, np.float32) for ndim in (1, 3)}
_ALL_EMIT = np.empty((0, 0), np.int64)

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # a forked child has the pool, but not its threads


def _workers(items: int, work: int) -> int:
    """Return how many threads to use on so many items, of so many state-steps together."""
    return max(1, min(torch.get_num_threads(), items, work // _ALONE))


def _on_threads(workers: int, run: Callable[[int], None]) -> None:
    """Call run(0) … run(workers - 1) at the same time, the first on this thread."""
    global _pool
    if _pool is None and workers > 1:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="selective-scan")
    futures = [_pool.submit(run, worker) for worker in range(1, workers)] if _pool is not None else []
    run(0)
    for future in futures:
        future.result()


def _array(tensor: Tensor | None, ndim: int = 3) -> Any:
    """Return a float32 array whose last stride is one element, a view where the tensor allows it."""
    if tensor is None:
        return _ABSENT[ndim]
    tensor = tensor.detach().to(torch.float32)
    return (tensor if tensor.stride(-1) == 1 else tensor.contiguous()).numpy()


def _arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, gap: Tensor | None, emit: Tensor | None, orders: Tensor | None,
    B_orders: Tensor | None, delta_softplus: bool, reverse: list[int],
) -> tuple[Any, ...]:  # fmt: skip
    """Return what the kernels take between the range of items and the output."""
    positions = _ALL_EMIT if emit is None else emit.numpy()
    options: tuple[Any, ...] = (positions, delta_softplus, np.array(reverse))
    if orders is not None:  # in the place of groups, B has directions
        batch, paths = len(u), orders.shape[1]
        B, C = B.transpose(1, 2), C.transpose(1, 2)
        B = B.expand(-1, paths, -1, -1) if B_orders is None else B + B_orders
        options = (positions, orders.expand(batch, -1, -1).numpy(), delta_softplus)
    arrays = map(_array, (u, delta, A.t().contiguous(), B, C))
    return (*arrays, _array(D, 1), _array(z), _array(delta_bias, 1), _array(gap), *options)


def _items(u: Tensor, groups: int) -> int:
    return len(u) * groups * -(-(u.shape[2] // groups) // kernels.LANES)


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> Tensor:
    """Scan in float32; see `ssm_models.scan.ops` for the arguments."""
    arguments = _arguments(u, delta, A, B, C, *rest)
    emit, orders, reverse = rest[4], rest[5], rest[-1]
    kept = u.shape[1] if emit is None else emit.shape[1]
    out = torch.empty((u.shape[0], kept, u.shape[2]), dtype=torch.float32)
    array, kernel = out.numpy(), (kernels.forward if orders is None else kernels.forward_orders)()
    items = _items(u, len(reverse))
    workers = _workers(items, u.numel() * A.shape[1])
    if workers == 1:
        kernel(0, items, *arguments, array)
        return out.to(u.dtype)
    # More shares than threads: whoever is held up by another process takes fewer of them.
    shares = min(items, 4 * workers)
    share = itertools.count()

    def run(worker: int) -> None:
        while (k := next(share)) < shares:
            kernel(items * k // shares, items * (k + 1) // shares, *arguments, array)

    _on_threads(workers, run)
    return out.to(u.dtype)


def backward(grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> list[Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias, gap and B_orders; empty where absent."""
    arguments = _arguments(u, delta, A, B, C, *rest)
    D, z, bias, gap = arguments[5:9]
    orders, extra, reverse = rest[5], rest[6], rest[-1]
    kernel = (kernels.backward if orders is None else kernels.backward_orders)()
    items = _items(u, len(reverse))
    workers = _workers(items, 3 * u.numel() * A.shape[1])
    du, ddelta = np.empty(u.shape, np.float32), np.empty(u.shape, np.float32)
    dz, dgap = np.empty(z.shape, np.float32), np.empty(gap.shape, np.float32)
    states = A.shape[1]
    padded = -(-states // 4) * 4  # the kernels add up lanes for four states at once
    # What items share is summed a thread; equal shares in a fixed order keep runs alike.
    dA, dD = (np.zeros((workers, *x.shape), np.float32) for x in (arguments[2], D))
    dB, dC = (np.zeros((workers, *x.shape[:-1], padded), np.float32) for x in arguments[3:5])
    upstream = _array(grad)

    def run(k: int) -> None:
        first, last = items * k // workers, items * (k + 1) // workers
        kernel(first, last, *arguments, upstream, du, ddelta, dA[k], dB[k], dC[k], dD[k], dz, dgap)

    _on_threads(workers, run)
    dbias = ddelta.sum((0, 1)) if bias.size else _ABSENT[1]
    gA, gB, gC, gD = (torch.from_numpy(x.sum(0) if workers > 1 else x[0]) for x in (dA, dB, dC, dD))
    gB, gC, gextra = gB[..., :states], gC[..., :states], torch.empty(0)
    if orders is not None:
        gextra = gextra if extra is None else gB.sum_to_size(extra.shape)
        gB, gC = gB.sum(1)[:, :, None], gC.transpose(1, 2)
    whole = [torch.from_numpy(x) for x in (du, ddelta, dz, dbias, dgap)]
    return [*whole[:2], gA.t(), gB, gC, gD, *whole[2:], gextra]
