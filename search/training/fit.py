"""The one training loop, for training from scratch and for fine-tuning alike, in one process or in several.

Every epoch draws its randomness from its own seed, so a run that was killed goes on from its last
epoch as if nothing had happened: the same weights come out, to the last bit, on the same machine.

Several processes each take a part of every batch and average their gradients before a step, so all of them
hold the same weights, moving average and optimiser all the time; the first one writes the checkpoint. What one
process would get comes out, up to the order of sums, and the number of processes may change from run to run.
Only random masks inside a model (drop path) are drawn anew for each part, and a batch norm normalises each part for
itself; its running statistics are averaged over the processes after every epoch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn

from search.data.dataset import BATCH_SIZE, Batches, ImageData
from search.data.preprocessing import Preprocessing
from search.data.tasks import task_named
from search.runtime.failures import out_of_memory
from search.training.batches import TrainingBatches
from search.training.checkpoint import CHECKPOINT, Scores, TrainingState
from search.training.data_parallel import Share
from search.training.epoch_log import TrainingLog
from search.training.recipe import PRECISIONS, Pace, Recipe, epoch_seed, learning_rate
from search.training.run_folder import check_folder, make_folder
from spaces.errors import TrainingError, UsageError
from ssm_models import PrunableModel, weights_digest

Loss = Callable[[PrunableModel, Tensor, Tensor], Tensor]
"""(model, images, targets of the task, or shares (B, C) of mixed images) → the loss of the batch, a scalar.

It is a mean over the images, so that the losses of a batch's parts, weighed by their images, add up to the batch's.
"""

Measure = Callable[[PrunableModel, Batches | None, torch.device, Share], Scores]
"""(model, a process's part of val, None if it has none, device, share) → (score, loss) over all of val."""

ONE = Share()
WHOLE = Pace()


@dataclass(frozen=True)
class FitResult:
    """What `fit` leaves behind, beside the trained weights in the model it was given.

    Attributes:
        top1: accuracy in 0..1 on the val images looked at, after the last epoch.
        loss: mean cross-entropy on them.
        images: how many they are.
        best_top1: the highest accuracy after any epoch that was looked at.
        best_epoch: which epoch that was, from 1.
        seconds: time spent, over all runs if it was resumed.
        curve: an object an epoch: epoch, train_loss, top1, loss, lr, seconds; top1 and loss are None where val
            was not looked at.
        start: (top1, loss) of the `references`, measured before the first epoch.
    """

    top1: float
    loss: float
    images: int
    best_top1: float
    best_epoch: int
    seconds: float
    curve: list[dict[str, Any]]
    start: dict[str, Scores]


def fit(
    model: PrunableModel,
    loss: Loss,
    data: ImageData,
    recipe: Recipe,
    *,
    out: Path,
    identity: Mapping[str, Any],
    resume: bool = True,
    device: str | torch.device | None = None,
    log: TrainingLog | None = None,
    val_images: int | None = None,
    pace: Pace = WHOLE,
    references: Mapping[str, PrunableModel | Scores] | None = None,
    share: Share = ONE,
    delegate: Callable[[], None] | None = None,
    measure: Measure | None = None,
) -> FitResult:
    """Minimise `loss` over the train split and leave the trained weights in `model`, on the CPU.

    Args:
        model: changed in place; what it is set to (a schedule) stays as it is.
        loss: see `Loss`; called on the device.
        data: with the splits train and val.
        recipe: the settings.
        out: the folder for the checkpoint of each epoch.
        identity: what, beside model, data and recipe, must be the same for a run to be resumed.
        resume: go on from a checkpoint where there is one.
        device: cuda where there is one if None.
        log: told how far it is.
        val_images: how many of the val split are looked at; None for all.
        pace: how it is run.
        references: models to measure on the same images before the first epoch, by name, or what is known of them.
        share: which of the processes this is; each calls `fit` with the same arguments, but for `log`.
        delegate: trains what is left, in other processes, and leaves the checkpoint that they end with.
        measure: how a model is scored; `accuracy` if None.

    Raises:
        UsageError, DataError, TrainingError, CheckpointError: as `train_model`; the checkpoint is broken.
    """
    where, score = best_device(device), measure or accuracy
    preprocessing = Preprocessing(model.pretrained_cfg, model.img_size)
    train = TrainingBatches(data, preprocessing, recipe.batch_size, share)
    config, size = model.pretrained_cfg, model.img_size
    images = data.batches(config, size, images=val_images).images
    first, end = share.span(images)
    at_once = min(BATCH_SIZE, -(-recipe.batch_size // pace.accumulate))  # what training has memory for
    val = data.batches(config, size, images=end - first, batch_size=at_once, skip=first) if end > first else None
    check_folder(out)
    whole_identity = {
        "model": model.model_name,
        "img_size": list(model.img_size),
        "data": data.digest("train"),
        "val": data.digest("val"),
        "weights": weights_digest(model),
        "val_images": images,
        **asdict(recipe),
        **identity,
    }
    for batches in (val, train.epoch(0)):
        if batches is not None:  # what fits in memory is read now: a broken image is found before anything is written
            next(iter(batches))
    mix = _mixer(recipe, train.batch_size, data)
    make_folder(out)
    state = TrainingState(model.to(where), recipe, where)
    checkpoint, last = out / CHECKPOINT, pace.last(recipe)
    if resume:
        state.restore(checkpoint, whole_identity)
    delegated = delegate is not None and len(state.curve) < last
    if delegate is not None and delegated:
        if not resume:
            checkpoint.unlink(missing_ok=True)
        delegate()
        state.restore(checkpoint, whole_identity)
        if len(state.curve) < last:
            raise TrainingError(f"{checkpoint}: the workers left {len(state.curve)} epochs of {last}")
    if not state.curve:
        for name, reference in (references or {}).items():
            with _memory(recipe, pace):
                known = reference if isinstance(reference, tuple) else score(reference.to(where), val, where, share)
            if not math.isfinite(known[1]):
                raise TrainingError(f"{name}: the loss on val ({known[1]:g}) is not finite: these weights are broken")
            state.start[name] = known
            if log:
                log.reference(name, *state.start[name])
    if log and not delegated:
        log.start(recipe.epochs, len(train), len(state.curve))
    loop = _Loop(state, loss, train, mix, recipe, pace, share, where, log)
    for epoch in range(len(state.curve), last):
        began = time.perf_counter()
        with _memory(recipe, pace):
            train_loss = loop.epoch(epoch)
            looks = pace.looks(epoch + 1, recipe)
            top1, val_loss = score(state.kept, val, where, share) if looks else (None, None)
        if val_loss is not None and not math.isfinite(val_loss):
            raise TrainingError(f"epoch {epoch + 1}: the loss on val ({val_loss:g}) is not finite; {_lower(recipe)}")
        row = {"epoch": epoch + 1, "train_loss": train_loss, "top1": top1, "loss": val_loss}
        lr = state.optimiser.param_groups[0]["lr"]
        state.curve.append({**row, "lr": lr, "seconds": time.perf_counter() - began})
        if share.first:
            state.keep(checkpoint, whole_identity)
        if log:
            log.epoch(state.curve[-1])
    if state.ema is not None:
        model.load_state_dict(state.ema.module.state_dict())
    if state.curve[last - 1]["top1"] is None:  # an earlier run was to look less often
        if len(state.curve) > last:
            raise UsageError(f"{out}: val was not looked at after epoch {last}, and more epochs are done; begin anew")
        top1, val_loss = score(model, val, where, share)
        state.curve[-1] |= {"top1": top1, "loss": val_loss}
    model.to("cpu").eval()
    return _result(state.curve[:last], images, state.start)


@contextmanager
def _memory(recipe: Recipe, pace: Pace) -> Iterator[None]:
    """Say what to do where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"memory ran out with {recipe.batch_size} images in a step, in {pace.accumulate} parts: give "
            f"--accumulate {2 * pace.accumulate} or more, or a smaller --batch-size"
        ) from error


def _lower(recipe: Recipe) -> str:
    return f"start again in another folder, with a learning rate below {recipe.lr:g}"


def _result(curve: list[dict[str, Any]], images: int, start: dict[str, Scores]) -> FitResult:
    best = max((line for line in curve if line["top1"] is not None), key=lambda line: line["top1"])
    last = curve[-1]
    seconds = sum(line["seconds"] for line in curve)
    return FitResult(last["top1"], last["loss"], images, best["top1"], best["epoch"], seconds, curve, start)


class _LossOf(nn.Module):
    """A model whose answer is its loss, so that what averages gradients sees one forward pass, whatever the loss."""

    def __init__(self, model: PrunableModel, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._loss(self.model, images, targets)


@dataclass
class _Loop:
    """The epochs of a training, one at a time; its fields are as in `fit`."""

    state: TrainingState
    loss: Loss
    train: TrainingBatches
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    recipe: Recipe
    pace: Pace
    share: Share
    device: torch.device
    log: TrainingLog | None

    def __post_init__(self) -> None:
        self._network = self.share.join(_LossOf(self.state.model, self.loss))

    def epoch(self, epoch: int) -> float:
        """Run an epoch, from 0, and return its mean loss; TrainingError where that is not finite."""
        state, recipe, steps = self.state, self.recipe, len(self.train)
        seed = epoch_seed(recipe.seed, epoch)
        torch.manual_seed(seed if self.share.first else epoch_seed(seed, self.share.rank))
        np.random.seed(seed % 2**32)  # timm's Mixup draws from it, the same in all processes
        state.model.train()
        losses = 0.0
        for index, (images, labels) in enumerate(self.train.epoch(seed)):
            step = epoch * steps + index
            for group in state.optimiser.param_groups:
                group["lr"] = learning_rate(step, recipe.epochs * steps, recipe)
            inputs, targets = images.to(self.device), labels.to(self.device)
            if self.mix is not None:
                inputs, targets = self.mix(inputs, targets)
            loss, norm = self._gradient(inputs, targets)
            self._step(loss, norm, f"epoch {epoch + 1}, batch {index + 1}")
            if state.ema is not None:
                state.ema.update(state.model, step=step + 1)
            losses += loss
            if self.log:
                self.log.batch(epoch + 1, loss)
        for network in (state.model, *(() if state.ema is None else (state.ema.module,))):
            self.share.even_out(network)
        return losses / steps

    def _gradient(self, images: Tensor, targets: Tensor) -> tuple[float, float]:
        """Leave the clipped gradient of the whole batch's loss; return this loss, and the norm before clipping.

        The losses of parts are weighed by their images, so that their gradients add up to it.
        """
        state, parts, dtype = self.state, self.pace.accumulate, PRECISIONS[self.recipe.amp]
        state.optimiser.zero_grad()
        value = torch.zeros((), device=self.device)
        left = len(images)
        for some, goal in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            left -= len(some)
            with self.share.apart(self._network) if left else nullcontext():
                with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                    loss = self._network(some, goal)
                weighed = loss * (len(some) / self.train.batch_size)
                state.scaler.scale(weighed * self.share.world).backward()  # over which the gradients' mean is taken
            value += weighed.detach()
        state.scaler.unscale_(state.optimiser)
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), self.recipe.clip or math.inf)
        return self.share.total([value.item()], self.device)[0], norm.item()

    def _step(self, loss: float, norm: float, where: str) -> None:
        """Take the optimiser's step, unless loss or gradient are not finite.

        A gradient beyond fp16 is no error: its step is left out, and the next losses are scaled less.
        """
        scaler = self.state.scaler
        bearable = math.isfinite(norm) or (scaler.is_enabled() and scaler.get_scale() >= 1)
        if not (math.isfinite(loss) and bearable):
            raise TrainingError(
                f"{where}: the loss ({loss:g}) or its gradient ({norm:g}) is not finite; {_lower(self.recipe)}"
            )
        scaler.step(self.state.optimiser)
        scaler.update()


@torch.inference_mode()
def accuracy(
    model: PrunableModel, batches: Batches | None, device: torch.device, share: Share = ONE
) -> tuple[float, float]:
    """Return (score in 0..1, mean cross-entropy) over the batches of all processes, in evaluation mode and fp32."""
    model.eval()
    tally = task_named(model.task).tally(model.num_classes)
    for pixels, targets in () if batches is None else batches:
        tally.add(model(pixels.to(device)).float(), targets.to(device))
    tally.sums = torch.tensor(share.total(tally.sums.tolist(), device), dtype=torch.float64)
    return tally.score, tally.loss


def best_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for; cuda where there is one if None."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _mixer(
    recipe: Recipe, batch_size: int, data: ImageData
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    if not data.task.metric.of_images:
        raise UsageError(
            f"{data.spec}: mixup and cutmix mix classes of images, and {data.task.name} has them by pixel"
        )
    if batch_size % 2:
        raise UsageError(f"batch_size={batch_size}: mixup and cutmix pair images, so it must be even")
    mixing: Callable[..., Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = Mixup  # untyped
    return mixing(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=data.num_classes)  # the loss smooths
