"""Data parallelism: which part of each batch a process trains on, and how the parts add up to the whole batch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from spaces.errors import UsageError


@dataclass(frozen=True)
class DataParallelRank:
    """The place of this process among those that train one model together.

    Attributes:
        rank: number of this process, from 0; rank 0 writes the files.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "DataParallelRank":
        """Return this process's rank in torch's process group, or `SINGLE_PROCESS` where there is no group."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return SINGLE_PROCESS

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def span(self, count: int) -> tuple[int, int]:
        """Return (begin, end) of this rank's run of `count` items; the runs of all ranks are nearly equal.

        >>> [DataParallelRank(rank, 3).span(10) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
        """
        return self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size

    def batch_indices(self, batch_size: int) -> Tensor:
        """Return the indices into a batch of this rank's images, (b,) int64 ascending.

        timm's mixup and cutmix pair image i with image -1 - i. A rank gets both images of a pair, so it mixes the
        same pairs as a single process would.

        >>> DataParallelRank(0, 2).batch_indices(8).tolist()
        [0, 1, 6, 7]

        Raises:
            UsageError: there are more ranks than pairs.
        """
        pairs = (batch_size + 1) // 2
        if pairs < self.world_size:
            raise UsageError(
                f"batch_size={batch_size}: {self.world_size} workers need {2 * self.world_size} images in a step, "
                "two for each"
            )
        front = torch.arange(*self.span(pairs))
        indices: Tensor = torch.cat([front, batch_size - 1 - front]).unique()  # type: ignore[no-untyped-call]
        return indices

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the elementwise sums over all ranks, in float64. Every rank must call it."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        total: list[float] = sums.tolist()
        return total

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network, wrapped so that a backward pass averages the gradients over all ranks."""
        if self.world_size == 1:
            return network
        # A schedule may leave parameters unused, for example those of blocks that no token reaches.
        return DistributedDataParallel(network, find_unused_parameters=True, broadcast_buffers=False)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which backward passes accumulate gradients without averaging them over the ranks."""
        if isinstance(network, DistributedDataParallel):
            return network.no_sync()
        return nullcontext()

    def average_batch_norms(self, network: nn.Module) -> None:
        """Replace the running statistics of batch norms, which differ between ranks, with their mean."""
        for module in network.modules() if self.world_size > 1 else ():
            for statistics in (module.running_mean, module.running_var) if isinstance(module, _BatchNorm) else ():
                if statistics is not None:
                    distributed.all_reduce(statistics)
                    statistics.div_(self.world_size)


SINGLE_PROCESS = DataParallelRank()
