"""What one of several processes does of a training: its part of each batch, and how the parts become one again."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from spaces.errors import UsageError


@dataclass(frozen=True)
class Share:
    """One process of a training, or the only one.

    Attributes:
        rank: which one it is, from 0; the first writes what is written.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def of_process(cls) -> "Share":
        """Return the share of this process in torch's process group; all of it where there is no group."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def span(self, count: int) -> tuple[int, int]:
        """Return where its run of `count` things begins and ends; the runs of all are nearly equal and cover them."""
        return self.rank * count // self.world, (self.rank + 1) * count // self.world

    def places(self, batch: int) -> Tensor:
        """Return the ascending places of its images in a batch, (b,) int64.

        With an image goes the one at the same place from the end: the two that timm's mixup and cutmix pair, by
        turning a batch over. So a part pairs the same images as the whole.

        Raises:
            UsageError: a process would have none.
        """
        pairs = (batch + 1) // 2
        if pairs < self.world:
            raise UsageError(
                f"batch_size={batch}: {self.world} workers need {2 * self.world} images in a step, two for each"
            )
        front = torch.arange(*self.span(pairs))
        mine: Tensor = torch.cat([front, batch - 1 - front]).unique()  # type: ignore[no-untyped-call]
        return mine

    def total(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return the sums of the processes' values, the same in all of them; each must call it."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def join(self, network: nn.Module) -> nn.Module:
        """Return the network such that a backward pass leaves the gradients' mean over all processes."""
        if self.world == 1:
            return network
        # Which parameters take no part depends on the schedule, such as those of a class of blocks that it empties.
        return DistributedDataParallel(network, find_unused_parameters=True, broadcast_buffers=False)

    def even_out(self, network: nn.Module) -> None:
        """Give batch norms' running statistics, which each process has of its own images, their mean over all."""
        for module in network.modules() if self.world > 1 else ():
            for statistics in (module.running_mean, module.running_var) if isinstance(module, _BatchNorm) else ():
                if statistics is not None:
                    distributed.all_reduce(statistics)
                    statistics.div_(self.world)

    def apart(self, network: nn.Module) -> AbstractContextManager[None]:
        """Within it, backward passes add up gradients of this process alone."""
        if isinstance(network, DistributedDataParallel):
            return network.no_sync()
        return nullcontext()
