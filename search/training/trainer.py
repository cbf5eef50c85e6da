"""The training loop, for training from scratch and for fine-tuning, in one process or in several.

Each epoch draws its randomness from its own seed. A training that was killed therefore continues from its last
checkpoint and ends with the same weights, to the last bit, on the same machine.

With several processes each rank computes the gradients of its part of every batch, and they are averaged before the
step. All ranks hold the same weights, moving average and optimiser state; rank 0 writes the checkpoint. The result is
that of a single process up to the order of floating-point sums, and the number of processes may change between runs.
Two things differ: random masks inside a model (drop path) are drawn per part, and batch norms normalise each part by
itself; their running statistics are averaged over the ranks after every epoch.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from search.data.dataset import BATCH_SIZE, Batches, ImageData
from search.data.image_order import STRATIFIED
from search.data.image_set import VAL, ImageSet
from search.data.preprocessing import Preprocessing
from search.study_data import EXIF, ORIENTATION
from search.training.batches import TrainingBatches
from search.training.checkpoint import CHECKPOINT, Scores, TrainingState, read_identity
from search.training.epoch_loop import EpochLoop, Loss, lower_rate, make_mix, memory_advice
from search.training.recipe import Recipe
from search.training.run_folder import check_folder, make_folder
from search.training.scoring import Measure, task_scores
from search.training.training_run import TrainingRun
from spaces.errors import TrainingError, UsageError
from ssm_models import PrunableModel, weights_digest


@dataclass(frozen=True)
class TrainingJob:
    """What a model is trained for. Together with the model's initial weights it decides the resulting weights.

    Attributes:
        loss: what to minimise; called on the device of the training.
        data: with the splits train and val.
        recipe: the hyperparameters.
        identity: what must be equal, beside model, data and recipe, for a run to be resumed.
        images: the images to evaluate on; None for all of val.
        references: models to score on them before the first epoch, by name, or scores that are known already.
        measure: how a model is scored.
    """

    loss: Loss
    data: ImageData
    recipe: Recipe
    identity: Mapping[str, Any] = field(default_factory=dict)
    images: ImageSet | None = None
    references: Mapping[str, PrunableModel | Scores] = field(default_factory=dict)
    measure: Measure = task_scores


@dataclass(frozen=True)
class FitResult:
    """How a training went; the weights are in the model.

    Attributes:
        top1: the task's score in 0..1 on the images of the job, after the last epoch.
        loss: mean cross-entropy on them, after the last epoch.
        images: how many they are.
        best_top1: the highest score after any epoch that was evaluated.
        best_epoch: that epoch, from 1.
        seconds: duration of all epochs, over all runs if the training was resumed.
        curve: one object per epoch: epoch, train_loss, top1, loss, lr, seconds; top1 and loss are None where val
            was not evaluated.
        start: (score, loss) of the `references` before the first epoch.
        weights_epoch: the epoch that the weights in the model are of: a later one than the last of `curve` if an
            earlier run went further.
    """

    top1: float
    loss: float
    images: int
    best_top1: float
    best_epoch: int
    seconds: float
    curve: list[dict[str, Any]]
    start: dict[str, Scores]
    weights_epoch: int = 0


class Trainer:
    """Trains a model and checkpoints it after every epoch.

    `fit` does it all. A caller that has the epochs run elsewhere calls `begin`, then `resume` from the checkpoint
    that was written there, then `finish`.

    Args:
        model: changed in place; its schedule stays as it is.
        job: what it is trained for.
        run: where and how it is trained.

    Raises:
        UsageError: `run.out` belongs to another training, or the settings contradict each other.
        DataError: a split is missing or has a broken image. Nothing is written before this is known.
        TrainingError: `run.out` cannot be made.
    """

    def __init__(self, model: PrunableModel, job: TrainingJob, run: TrainingRun) -> None:
        self._model, self._job, self._run = model, job, run
        self._device = run.torch_device
        self._last = run.pace.last_epoch(job.recipe)
        preprocessing = Preprocessing(model.pretrained_cfg, model.img_size)
        self._train = TrainingBatches(job.data, preprocessing, job.recipe.batch_size, run.rank)
        self._scored = job.images or ImageSet(VAL, job.data.size(VAL))
        self._images, self._val = self._open_val()
        check_folder(run.out)
        self._identity = self._full_identity()
        for batches in (self._val, self._train.epoch(0)):
            if batches is not None:  # reads what is kept in memory, and so finds broken images
                next(iter(batches))
        self._mix = make_mix(job.recipe, self._train.batch_size, job.data)
        make_folder(run.out)
        self._checkpoint = run.out / CHECKPOINT
        self._state = TrainingState(model.to(self._device), job.recipe, self._device)

    def _open_val(self) -> tuple[int, Batches | None]:
        """Return the number of images to evaluate on over all ranks, and this rank's part of them."""
        model, data, run, scored = self._model, self._job.data, self._run, self._scored
        images = scored.batches(data, model).images
        begin, end = run.rank.span(images)
        if begin == end:
            return images, None
        # no more images at once than a training step holds in memory
        batch_size = min(BATCH_SIZE, -(-self._job.recipe.batch_size // run.pace.accumulate))
        mine = replace(scored, images=end - begin, skip=scored.skip + begin)
        return images, mine.batches(data, model, batch_size)

    def _full_identity(self) -> dict[str, Any]:
        """Return what a checkpoint must name to be resumed; see `images_identity`."""
        scored = replace(self._scored, images=self._images)
        return {
            "model": self._model.model_name,
            "img_size": list(self._model.img_size),
            "data": self._job.data.digest("train"),
            "val": self._job.data.digest(scored.split),
            "weights": weights_digest(self._model),
            **images_identity(scored, self._job.data.size(scored.split)),
            ORIENTATION: EXIF,
            **asdict(self._job.recipe),
            **self._job.identity,
        }

    @property
    def epochs_done(self) -> int:
        """Epochs that are finished."""
        return len(self._state.curve)

    @property
    def epochs_left(self) -> int:
        """Epochs that this run still has to train."""
        return max(0, self._last - self.epochs_done)

    def fit(self) -> FitResult:
        """Train the epochs that are left, leave the weights in the model, on the CPU, and return how it went.

        Raises:
            UsageError: the checkpoint is of other settings.
            CheckpointError: it is broken.
            TrainingError: a loss is not finite, or a file cannot be written.
        """
        self.begin()
        if not self.epochs_done:
            self._score_references()
        self._run.observer.on_start(self._job.recipe.epochs, len(self._train), self.epochs_done)
        loop = EpochLoop(self._state, self._job.loss, self._job.recipe, self._train, self._mix, self._run)
        for epoch in range(self.epochs_done, self._last):
            self._train_epoch(loop, epoch)
        return self.finish()

    def begin(self) -> None:
        """Restore the checkpoint, if there is one and the run resumes."""
        if self._run.resume:
            self.resume()

    def resume(self) -> None:
        """Restore the checkpoint, if there is one."""
        self._state.restore(self._checkpoint, self._identity, {ORIENTATION: self._orientation_before})

    def _orientation_before(self) -> str:
        """Return how the images were read for a checkpoint that does not say it: none but TIFF was turned."""
        turned = any(self._job.data.first_turned(split) is not None for split in ("train", "val"))
        return "as stored" if turned else EXIF

    def finish(self) -> FitResult:
        """Leave the weights in the model, on the CPU, and return how the training went.

        Raises:
            TrainingError: epochs are left.
            UsageError: this run ends before epochs that are done already, and val was not evaluated where it ends.
        """
        curve, last = self._state.curve, self._last
        if self.epochs_left:
            raise TrainingError(f"{self._checkpoint}: the workers left {len(curve)} epochs of {last}")
        if self._state.ema is not None:
            self._model.load_state_dict(self._state.ema.module.state_dict())
        if curve[last - 1]["top1"] is None:  # an earlier run was to evaluate less often
            if len(curve) > last:
                raise UsageError(
                    f"{self._run.out}: val was not evaluated after epoch {last}, and later epochs are done already; "
                    "start again in another folder"
                )
            top1, loss = self._score(self._model)
            curve[-1] |= {"top1": top1, "loss": loss}
        self._model.to("cpu").eval()
        return replace(_summarise(curve[:last], self._images, self._state.start), weights_epoch=len(curve))

    def _score_references(self) -> None:
        for name, reference in self._job.references.items():
            with memory_advice(self._job.recipe, self._run.pace):
                scores = reference if isinstance(reference, tuple) else self._score(reference.to(self._device))
            if not math.isfinite(scores[1]):
                raise TrainingError(
                    f"{name}: the loss on val ({scores[1]:g}) is not finite: these weights are broken"
                )
            self._state.start[name] = scores
            self._run.observer.on_reference(name, *scores)

    def _train_epoch(self, loop: EpochLoop, epoch: int) -> None:
        """Train and score an epoch, numbered from 0, and write its checkpoint."""
        began, recipe, pace = time.perf_counter(), self._job.recipe, self._run.pace
        with memory_advice(recipe, pace):
            train_loss = loop.run_epoch(epoch)
            evaluated = pace.evaluates(epoch + 1, recipe)
            top1, loss = self._score(self._state.kept) if evaluated else (None, None)
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(f"epoch {epoch + 1}: the loss on val ({loss:g}) is not finite; {lower_rate(recipe)}")
        row = {"epoch": epoch + 1, "train_loss": train_loss, "top1": top1, "loss": loss}
        row |= {"lr": self._state.learning_rate, "seconds": time.perf_counter() - began}
        self._state.curve.append(row)
        if self._run.rank.writes:
            self._state.save(self._checkpoint, self._identity)
        self._run.observer.on_epoch(row)

    def _score(self, model: PrunableModel) -> Scores:
        return self._job.measure(model, self._val, self._device, self._run.rank)


def images_identity(images: ImageSet, there: int) -> dict[str, Any]:
    """Return how a checkpoint names the images of its scores; `there` are in the split.

    Older checkpoints name a number of images alone: the first of val, in the stratified order.
    """
    part = images.images < there
    return {
        "val_images": images.images,
        **({"val_order": images.order} if part and images.order != STRATIFIED else {}),
        **({"val_split": images.split} if images.split != VAL else {}),
        **({"val_skip": images.skip} if images.skip else {}),
    }


def begun_images(out: Path, data: ImageData, order: str) -> ImageSet | None:
    """Return the images that a run in a folder scores on; None if none was begun there, or its checkpoint is broken.

    Args:
        out: the folder.
        data: the data set.
        order: what to call the order where all of a split is scored, for then the checkpoint names none.
    """
    saved = read_identity(out / CHECKPOINT)
    if saved is None or type(saved.get("val_images")) is not int:
        return None
    images, split, skip = saved["val_images"], saved.get("val_split", VAL), saved.get("val_skip", 0)
    usual = order if images == data.size(split) else STRATIFIED
    return ImageSet(split, images, skip, saved.get("val_order", usual))


def _summarise(curve: list[dict[str, Any]], images: int, start: dict[str, Scores]) -> FitResult:
    best = max((row for row in curve if row["top1"] is not None), key=lambda row: row["top1"])
    last, seconds = curve[-1], sum(row["seconds"] for row in curve)
    return FitResult(last["top1"], last["loss"], images, best["top1"], best["epoch"], seconds, curve, start)
