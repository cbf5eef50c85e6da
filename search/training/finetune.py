"""Fine-tuning under a schedule: the pruned model learns from the labels and from the dense model's outputs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from results.files import write_json
from results.records import FineTune
from search.data.dataset import ImageData
from search.data.image_set import VAL, ImageSet
from search.runtime.versions import versions
from search.training.checkpoint import Scores
from search.training.finetune_job import FineTuneJob
from search.training.recipe import Recipe
from search.training.run_folder import held_folder
from search.training.train import save_weights, training_record
from search.training.trainer import FitResult, Trainer
from search.training.training_run import TrainingRun
from spaces import PruningSchedule
from ssm_models import PrunableModel, weights_digest

FINETUNE_RECORD = "finetune.json"  # beside the weights


class Workers(Protocol):
    """Processes that can run the epochs of a fine-tuning together, such as `ray_workers.RayWorkers`."""

    @property
    def count(self) -> int:
        """Number of workers."""

    def assign(
        self, job: FineTuneJob, model: PrunableModel, teacher: PrunableModel, data: ImageData, run: TrainingRun
    ) -> Callable[[], None]:
        """Return a function that trains the job and leaves the checkpoint of the last epoch in `run.out`.

        Args:
            job, data, run: as for `finetune_model`.
            model, teacher: with their initial weights, which the workers must open alike.

        Raises:
            UsageError: the workers cannot open these models.
        """


@dataclass(frozen=True)
class FineTuneResult:
    """A fine-tuned model, evaluated under its schedule on the same images before and after.

    Attributes:
        schedule: the schedule that it was fine-tuned under.
        before: (score in 0..1, mean cross-entropy) of the initial weights under the schedule.
        dense: the same of the teacher, without a schedule.
        fit: how the training went; its `top1` and `loss` are the scores after it.
        checkpoint: OUT/model.safetensors; None while epochs of the recipe are left.
        weights_digest: of the model's weights.
        config: recipe, distillation and number of workers.
        scored_on: the images of all scores.
        data_digest: SHA-256 of their split.
    """

    schedule: PruningSchedule
    before: Scores
    dense: Scores
    fit: FitResult
    checkpoint: Path | None
    weights_digest: str
    config: dict[str, Any]
    scored_on: ImageSet | None = None
    data_digest: str | None = None

    @property
    def record(self) -> FineTune:
        """The record for the store."""
        scored = self.scored_on
        return FineTune(
            schedule_hash=self.schedule.hash,
            top1=self.fit.top1,
            loss=self.fit.loss,
            epochs=len(self.fit.curve),
            images=self.fit.images,
            seconds=self.fit.seconds,
            checkpoint="" if self.checkpoint is None else str(self.checkpoint.absolute()),
            weights_digest=self.weights_digest,
            config=self.config,
            curve=self.fit.curve,
            versions=versions(),
            split=None if scored is None else scored.split,
            skip=None if scored is None else scored.skip,
            order=None if scored is None else scored.order,
            data_digest=self.data_digest,
            before_top1=self.before[0],
            dense_top1=self.dense[0],
        )


def finetune_recipe(epochs: int, **changes: Any) -> Recipe:
    """Return the default recipe for fine-tuning: a low learning rate, no label smoothing, no moving average.

    Args:
        epochs: passes over the train split.
        changes: values of `Recipe` that differ from it.

    Raises:
        UsageError: a value is out of range.

    >>> recipe = finetune_recipe(3, batch_size=32)
    >>> recipe.lr, recipe.batch_size, recipe.ema
    (0.0005, 32, 0.0)
    """
    return Recipe(
        **{"epochs": epochs, "lr": 5e-4, "label_smoothing": 0.0, "ema": 0.0, "weight_decay": 1e-4} | changes
    )


def finetune_model(
    model: PrunableModel,
    teacher: PrunableModel,
    data: ImageData,
    job: FineTuneJob,
    run: TrainingRun,
    *,
    workers: Workers | None = None,
    command: str | None = None,
) -> FineTuneResult:
    """Fine-tune a model under a schedule. After the last epoch write OUT/model.safetensors and OUT/finetune.json.

    To fine-tune from Python::

        data = open_data("embedded")
        model, teacher = (open_model("vim_nano", None, data) for _ in range(2))
        job = FineTuneJob(PruningSchedule.parse("6:0.5"), finetune_recipe(epochs=2), Distillation())
        result = finetune_model(model, teacher, data, job, TrainingRun(Path("runs/tuned")))

    Args:
        model: with the weights that the search used; changed in place, and left under the schedule.
        teacher: a second model with the same classes, usually the same weights; runs dense, and is not changed.
        data: with the splits train and val.
        job: schedule, recipe and distillation.
        run: the folder OUT, and how to train.
        workers: processes that run the epochs in place of this one.
        command: what the user typed; by default this process's arguments.

    Raises:
        ScheduleError: the schedule does not fit the model; nothing is written.
        UsageError: OUT belongs to another training, or is in use.
        DataError: a split is missing or broken, or its classes are not the models'.
        TrainingError: a loss is not finite, OUT cannot be written, or a worker was lost.
    """
    train_elsewhere = None if workers is None else workers.assign(job, model, teacher, data, run)
    with held_folder(run.out):
        fitted = _fit(job.trainer(model, teacher, data, run), train_elsewhere)
        config = {
            **asdict(job.recipe),
            "distillation": asdict(job.distillation),
            "workers": 1 if workers is None else workers.count,
        }
        path = None
        digest = weights_digest(model)
        scored = replace(job.images or ImageSet(VAL, fitted.images), images=fitted.images)
        if run.pace.last_epoch(job.recipe) == job.recipe.epochs:
            path = save_weights(model, data, run.out)
            record = training_record(model, data, job.recipe, fitted, command) | _finetune_record(
                job, fitted, teacher
            )
            record |= images_record(scored, data)
            write_json(run.out / FINETUNE_RECORD, record)
    start = fitted.start
    return FineTuneResult(
        job.schedule,
        start["before"],
        start["dense"],
        fitted,
        path,
        digest,
        config,
        scored_on=scored,
        data_digest=data.digest(scored.split),
    )


def images_record(images: ImageSet, data: ImageData) -> dict[str, Any]:
    """Return how finetune.json names the images of its scores."""
    return {"scored_on": {**asdict(images), "data_digest": data.digest(images.split)}}


def report_scores(
    result: FineTuneResult, data: ImageData, images: ImageSet, scores: Mapping[str, Scores]
) -> FineTuneResult:
    """Return the result with scores of other images than those that its training was followed on.

    The record beside the weights, OUT/finetune.json, gets them too; its curve stays, and is said to be of the former.

    Args:
        result: of a fine-tuning that finished all epochs.
        data: the data set.
        images: the images of the scores.
        scores: (score, loss) of `dense`, `before` and `after`.
    """
    assert result.checkpoint is not None and result.scored_on is not None
    (dense, before, after), path = (scores[name] for name in ("dense", "before", "after")), result.checkpoint.parent
    record = json.loads((path / FINETUNE_RECORD).read_text(encoding="utf-8"))
    record |= {f"{name}_top1": scores[name][0] for name in ("dense", "before")}
    record |= {f"{name}_loss": scores[name][1] for name in ("dense", "before")}
    for name in ("best_top1", "best_epoch"):  # of the curve, and so of other images
        record.pop(name, None)
    record |= {"top1": after[0], "loss": after[1], "images": images.images, **images_record(images, data)}
    record |= {"curve_of": asdict(result.scored_on)}
    write_json(path / FINETUNE_RECORD, record)
    fit = replace(result.fit, top1=after[0], loss=after[1], images=images.images)
    return replace(
        result,
        dense=dense,
        before=before,
        fit=fit,
        scored_on=images,
        data_digest=data.digest(images.split),
    )


def _fit(trainer: Trainer, train_elsewhere: Callable[[], None] | None) -> FitResult:
    """Train here, or have the epochs that are left run elsewhere and take the result from their checkpoint."""
    if train_elsewhere is not None:
        trainer.begin()
        if trainer.epochs_left:
            train_elsewhere()
            trainer.resume()
            return trainer.finish()
    return trainer.fit()


def _finetune_record(job: FineTuneJob, fitted: FitResult, teacher: PrunableModel) -> dict[str, Any]:
    """Return what finetune.json holds beside `training_record`."""
    return {
        "schedule": job.schedule.text,
        "schedule_hash": job.schedule.hash,
        "distillation": asdict(job.distillation),
        "teacher_digest": weights_digest(teacher),
        "dense_top1": fitted.start["dense"][0],
        "dense_loss": fitted.start["dense"][1],
        "before_top1": fitted.start["before"][0],
        "before_loss": fitted.start["before"][1],
    }
