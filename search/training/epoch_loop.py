"""The optimiser steps of one epoch."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn

from search.data.dataset import ImageData
from search.runtime.failures import out_of_memory
from search.training.batches import TrainingBatches
from search.training.checkpoint import TrainingState
from search.training.recipe import PRECISIONS, Recipe, epoch_seed, learning_rate
from search.training.training_run import Pace, TrainingRun
from spaces.errors import TrainingError, UsageError
from ssm_models import PrunableModel

Loss = Callable[[PrunableModel, Tensor, Tensor], Tensor]
"""(model, images (B, 3, H, W), the task's targets, or class shares (B, C) of mixed images) → scalar loss.

It must be a mean over the images, so that the losses of a batch's parts, weighted by their images, add up to the
batch's loss.
"""

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class EpochLoop:
    """Runs epochs one at a time.

    Args:
        state: the model, optimiser and moving average to update.
        loss: what to minimise.
        recipe: the hyperparameters.
        batches: the train split.
        mix: mixup and cutmix, from `make_mix`; None for neither.
        run: device, pace, rank and observer.
    """

    def __init__(
        self,
        state: TrainingState,
        loss: Loss,
        recipe: Recipe,
        batches: TrainingBatches,
        mix: Mix | None,
        run: TrainingRun,
    ) -> None:
        self._state, self._recipe, self._batches, self._mix = state, recipe, batches, mix
        self._run, self._device = run, run.torch_device
        self._network = run.rank.wrap(_LossOf(state.model, loss))

    def run_epoch(self, epoch: int) -> float:
        """Train for an epoch, numbered from 0, and return its mean loss.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        state, recipe, rank, steps = self._state, self._recipe, self._run.rank, len(self._batches)
        seed = epoch_seed(recipe.seed, epoch)
        torch.manual_seed(seed if rank.writes else epoch_seed(seed, rank.rank))
        np.random.seed(seed % 2**32)  # used by timm's Mixup; equal on all ranks, so that they mix alike
        state.model.train()
        losses = 0.0
        for index, (images, targets) in enumerate(self._batches.epoch(seed)):
            step = epoch * steps + index
            state.set_learning_rate(learning_rate(step, recipe.epochs * steps, recipe))
            loss = self._step(images, targets, f"epoch {epoch + 1}, batch {index + 1}")
            if state.ema is not None:
                state.ema.update(state.model, step=step + 1)
            losses += loss
            self._run.observer.on_batch(epoch + 1, loss)
        for network in (state.model, *(() if state.ema is None else (state.ema.module,))):
            rank.average_batch_norms(network)
        return losses / steps

    def _step(self, images: Tensor, targets: Tensor, where: str) -> float:
        """Take an optimiser step and return the loss of the whole batch.

        A gradient that overflows fp16 is no error: its step is skipped, and the loss scale shrinks.
        """
        inputs, goals = images.to(self._device), targets.to(self._device)
        if self._mix is not None:
            inputs, goals = self._mix(inputs, goals)
        loss, norm = self._backward(inputs, goals)
        scaler = self._state.scaler
        overflowed = scaler.is_enabled() and scaler.get_scale() >= 1
        if not math.isfinite(loss) or not (math.isfinite(norm) or overflowed):
            raise TrainingError(
                f"{where}: the loss ({loss:g}) or its gradient ({norm:g}) is not finite; {lower_rate(self._recipe)}"
            )
        scaler.step(self._state.optimiser)
        scaler.update()
        return loss

    def _backward(self, images: Tensor, targets: Tensor) -> tuple[float, float]:
        """Leave the clipped gradient of the whole batch's loss in the model.

        Returns:
            The loss of the whole batch, over all ranks, and the gradient's norm before clipping.
        """
        state, rank, precision = self._state, self._run.rank, PRECISIONS[self._recipe.amp]
        state.optimiser.zero_grad()
        total = torch.zeros((), device=self._device)
        left, parts = len(images), self._run.pace.accumulate
        for part, goals in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            left -= len(part)
            with rank.no_sync(self._network) if left else nullcontext():
                with torch.autocast(self._device.type, precision or torch.bfloat16, enabled=precision is not None):
                    loss = self._network(part, goals)
                weighted = loss * (len(part) / self._batches.batch_size)
                # The gradients are averaged over the ranks, but their losses add up.
                state.scaler.scale(weighted * rank.world_size).backward()
            total += weighted.detach()
        state.scaler.unscale_(state.optimiser)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self._recipe.clip or math.inf)
        return rank.sum([total.item()], self._device)[0], norm.item()


class _LossOf(nn.Module):
    """A model whose output is its loss, so that DistributedDataParallel sees a single forward pass."""

    def __init__(self, model: PrunableModel, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._loss(self.model, images, targets)


def make_mix(recipe: Recipe, batch_size: int, data: ImageData) -> Mix | None:
    """Return timm's mixup and cutmix as a function of a batch; None if the recipe uses neither.

    Raises:
        UsageError: the batch is odd, or the data's targets are not one class for each image.
    """
    if not (recipe.mixup or recipe.cutmix):
        return None
    if not data.task.metric.of_images:
        raise UsageError(
            f"{data.spec}: mixup and cutmix mix the classes of whole images, but {data.task.name} has a class for "
            "each pixel"
        )
    if batch_size % 2:
        raise UsageError(f"batch_size={batch_size}: mixup and cutmix pair images, so it must be even")
    mixup: Callable[..., Mix] = Mixup  # timm leaves it untyped
    return mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=data.num_classes)  # the loss smooths


@contextmanager
def memory_advice(recipe: Recipe, pace: Pace) -> Iterator[None]:
    """Turn a failed allocation in the block into a TrainingError that says which option helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"memory ran out with {recipe.batch_size} images in a step, in {pace.accumulate} parts: give "
            f"--accumulate {2 * pace.accumulate} or more, or a smaller --batch-size"
        ) from error


def lower_rate(recipe: Recipe) -> str:
    """Return the advice for a training that diverged."""
    return f"start again in another folder, with a learning rate below {recipe.lr:g}"
