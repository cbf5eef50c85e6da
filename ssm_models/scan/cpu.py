"""The selective scan on the CPU: compiled loops that keep the states of a tile of channels in the L1 cache.

A work item is one image, one group of channels (a scan direction) and one tile of its channels. The forward pass
stores nothing of size L × D × N; the backward pass stores the states of one tile per thread. The kernels release the
GIL, and the items are shared among as many threads as torch is set to use.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssm_models.scan import cpu_kernels as kernels
from ssm_models.scan.arguments import ScanArguments, ScanGradients

_ALONE = 200_000  # state-steps that one thread finishes before a second one has woken up
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


class _KernelInputs(NamedTuple):
    """What the kernels take between the range of items and the output, in their order; absent arrays are empty.

    Numba's kernels take positional scalars and arrays alone: how many there are is their calling convention.
    """

    u: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    delta_bias: Any
    gap: Any
    layout: tuple[Any, ...]

    def flatten(self) -> tuple[Any, ...]:
        return (*self[:-1], *self.layout)


def _kernel_inputs(a: ScanArguments) -> _KernelInputs:
    """Return the arrays that the kernels read. With `orders`, B has directions in the place of groups."""
    B, C = a.B, a.C
    emit = _ALL_EMIT if a.emit is None else a.emit.numpy()
    if a.orders is None:
        layout: tuple[Any, ...] = (emit, a.delta_softplus, np.array(a.reverse))
    else:
        B, C = B.transpose(1, 2), C.transpose(1, 2)
        B = B.expand(-1, a.paths, -1, -1) if a.B_orders is None else B + a.B_orders
        layout = (emit, a.orders.expand(len(a.u), -1, -1).numpy(), a.delta_softplus)
    return _KernelInputs(
        u=_array(a.u),
        delta=_array(a.delta),
        A=_array(a.A.t().contiguous()),
        B=_array(B),
        C=_array(C),
        D=_array(a.D, 1),
        z=_array(a.z),
        delta_bias=_array(a.delta_bias, 1),
        gap=_array(a.gap),
        layout=layout,
    )


def _items(a: ScanArguments) -> int:
    """Return the number of work items."""
    return len(a.u) * a.groups * -(-(a.u.shape[2] // a.groups) // kernels.LANES)


def forward(arguments: ScanArguments) -> Tensor:
    """Scan in float32; return (b, K, D) in u's dtype."""
    a, inputs = arguments, _kernel_inputs(arguments).flatten()
    out = torch.empty(a.out_shape, dtype=torch.float32)
    array, kernel = out.numpy(), (kernels.forward if a.orders is None else kernels.forward_orders)()
    items = _items(a)
    workers = _workers(items, a.u.numel() * a.states)
    if workers == 1:
        kernel(0, items, *inputs, array)
        return out.to(a.u.dtype)
    # More shares than threads: a thread that another process holds up takes fewer of them.
    shares = min(items, 4 * workers)
    share = itertools.count()

    def run(worker: int) -> None:
        while (k := next(share)) < shares:
            kernel(items * k // shares, items * (k + 1) // shares, *inputs, array)

    _on_threads(workers, run)
    return out.to(a.u.dtype)


def backward(grad: Tensor, arguments: ScanArguments) -> ScanGradients:
    """Return the gradients of all inputs in float32, given that of the output (b, K, D)."""
    a, inputs = arguments, _kernel_inputs(arguments)
    flat, kernel = inputs.flatten(), (kernels.backward if a.orders is None else kernels.backward_orders)()
    items = _items(a)
    workers = _workers(items, 3 * a.u.numel() * a.states)
    du, ddelta = np.empty(a.u.shape, np.float32), np.empty(a.u.shape, np.float32)
    dz, dgap = np.empty(inputs.z.shape, np.float32), np.empty(inputs.gap.shape, np.float32)
    padded = -(-a.states // 4) * 4  # the kernels add up lanes for four states at once
    # What items share is summed per thread; equal shares in a fixed order make runs repeatable.
    dA, dD = (np.zeros((workers, *x.shape), np.float32) for x in (inputs.A, inputs.D))
    dB, dC = (np.zeros((workers, *x.shape[:-1], padded), np.float32) for x in (inputs.B, inputs.C))
    upstream = _array(grad)

    def run(k: int) -> None:
        first, last = items * k // workers, items * (k + 1) // workers
        kernel(first, last, *flat, upstream, du, ddelta, dA[k], dB[k], dC[k], dD[k], dz, dgap)

    _on_threads(workers, run)
    gA, gB, gC, gD = (torch.from_numpy(x.sum(0) if workers > 1 else x[0]) for x in (dA, dB, dC, dD))
    gB, gC, gB_orders = gB[..., : a.states], gC[..., : a.states], None
    if a.orders is not None:
        gB_orders = None if a.B_orders is None else gB.sum_to_size(a.B_orders.shape)
        gB, gC = gB.sum(1)[:, :, None], gC.transpose(1, 2)
    return ScanGradients(
        u=torch.from_numpy(du),
        delta=torch.from_numpy(ddelta),
        A=gA.t(),
        B=gB,
        C=gC,
        D=None if a.D is None else gD,
        z=None if a.z is None else torch.from_numpy(dz),
        delta_bias=None if a.delta_bias is None else torch.from_numpy(ddelta.sum((0, 1))),
        gap=None if a.gap is None else torch.from_numpy(dgap),
        B_orders=gB_orders,
    )
