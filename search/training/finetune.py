"""Fine-tuning under a schedule: the pruned model learns the labels and what the dense model makes of the images."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from results.files import write_json
from results.records import FineTune
from search.data.dataset import ImageData
from search.runtime.versions import versions
from search.training.checkpoint import Scores
from search.training.distillation import Distillation
from search.training.epoch_log import TrainingLog
from search.training.finetune_job import FineTuning
from search.training.fit import WHOLE, FitResult
from search.training.recipe import Pace, Recipe
from search.training.run_folder import held_folder
from search.training.train import save_weights, training_record
from spaces import PruningSchedule
from ssm_models import PrunableModel, weights_digest

if TYPE_CHECKING:
    from search.training.ray_workers import Crew


@dataclass(frozen=True)
class FineTuneResult:
    """A fine-tuned model, evaluated under its schedule on the same val images before and after.

    Attributes:
        schedule: what it was fine-tuned under.
        before: (top-1 in 0..1, mean cross-entropy) of the untouched weights.
        dense: the same of the teacher, without a schedule.
        fit: how the training went; its `top1` and `loss` are those after it.
        checkpoint: OUT/model.safetensors; None while epochs of the recipe are left.
        weights_digest: of the weights that the model was left with.
        config: recipe and distillation.
    """

    schedule: PruningSchedule
    before: Scores
    dense: Scores
    fit: FitResult
    checkpoint: Path | None
    weights_digest: str
    config: dict[str, Any]

    @property
    def record(self) -> FineTune:
        """What the store keeps of it."""
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
        )


def finetune_recipe(epochs: int, **changes: Any) -> Recipe:
    """Return the recipe for fine-tuning, with `changes` made to it: a small rate, no smoothing, no average.

    Raises:
        UsageError: a value that makes no sense.
    """
    return Recipe(
        **{"epochs": epochs, "lr": 5e-4, "label_smoothing": 0.0, "ema": 0.0, "weight_decay": 1e-4} | changes
    )


def finetune_model(
    model: PrunableModel,
    teacher: PrunableModel,
    data: ImageData,
    schedule: PruningSchedule,
    recipe: Recipe,
    *,
    out: str | Path,
    distillation: Distillation | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    log: TrainingLog | None = None,
    command: str | None = None,
    images: int | None = None,
    pace: Pace = WHOLE,
    dense: Scores | None = None,
    crew: "Crew | None" = None,
) -> FineTuneResult:
    """Fine-tune a model under a schedule; at its end write OUT/model.safetensors and OUT/finetune.json.

    Args:
        model: with the weights that the search saw; changed in place, and left under the schedule.
        teacher: a second model of the same classes, as a rule with the same weights; run dense, not changed.
        data: with the splits train and val.
        schedule: fits the model; ScheduleError otherwise, before anything is written.
        recipe: the settings.
        out, resume, device, log, command, pace: as for `train_model`.
        distillation: how much the teacher has to say.
        images: how many of the val split accuracies are measured on, a study's number to compare with
            it; None for all.
        dense: what is known of the teacher on these images; it is measured if None.
        crew: workers that train in this process's place; they open model and teacher by the crew's checkpoint.

    Raises:
        UsageError: OUT holds a training of other settings, or another one is at work there.
        DataError: a split is missing or broken, or its classes are not the models'.
        TrainingError: the loss is not finite, OUT cannot be written, or a worker was lost.
    """
    teaching = distillation or Distillation()
    job = FineTuning(schedule.text, recipe, teaching, str(out), images, pace, dense)
    delegate = None
    if crew is not None:
        team = crew
        work = crew.work(job, model, teacher, data)

        def delegate() -> None:
            team.run(work, Path(out), log)

    with held_folder(Path(out)):
        result = job.run(model, teacher, data, resume=resume, device=device, log=log, delegate=delegate)
        config = {**asdict(recipe), "distillation": asdict(teaching), "workers": 1 if crew is None else crew.workers}
        before, of_teacher = result.start["before"], result.start["dense"]
        if pace.last(recipe) < recipe.epochs:
            return FineTuneResult(schedule, before, of_teacher, result, None, weights_digest(model), config)
        path, digest = save_weights(model, data, Path(out))
        record = {
            **training_record(model, data, recipe, result, digest, command),
            "schedule": schedule.text,
            "schedule_hash": schedule.hash,
            "distillation": asdict(teaching),
            "teacher_digest": weights_digest(teacher),
            "dense_top1": of_teacher[0],
            "dense_loss": of_teacher[1],
            "before_top1": before[0],
            "before_loss": before[1],
        }
        write_json(Path(out) / "finetune.json", record)
        return FineTuneResult(schedule, before, of_teacher, result, path, digest, config)
