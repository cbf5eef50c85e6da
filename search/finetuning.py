"""Fine-tuning under a schedule: the pruned model learns the labels and the dense model's answers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from results.export import write_json
from results.records import FineTune
from search.data import ImageData
from search.epoch_log import TrainingLog
from search.fitting import FitResult, Recipe, accuracy, best_device, fit
from search.training import save_weights, training_record
from search.versions import versions
from spaces import PruningSchedule
from spaces.errors import UsageError
from ssm_models import PrunableModel, weights_digest


@dataclass(frozen=True)
class Distillation:
    """How much the student learns from the teacher.

    Attributes:
        share: of the loss that is the distance to the teacher's answers; the rest is the labels'.
        temperature: by which the logits of both are divided before they are compared.

    Raises:
        UsageError: a share outside [0, 1], or a temperature that is not above 0.
    """

    share: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"distillation share={self.share!r}: expected a value from 0 to 1")
        if not 0 < self.temperature < 1000:
            raise UsageError(f"distillation temperature={self.temperature!r}: expected a value above 0")

    def loss(self, student: Tensor, teacher: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss of a batch from the logits of both, (B, C) each, and the targets."""
        t = self.temperature
        distance = F.kl_div(
            F.log_softmax(student / t, dim=1),
            F.log_softmax(teacher / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        labels = F.cross_entropy(student, targets, label_smoothing=label_smoothing)
        # t² keeps the gradient's size, whatever the temperature
        return self.share * t * t * distance + (1 - self.share) * labels


@dataclass(frozen=True)
class FineTuneResult:
    """A fine-tuned model, evaluated under its schedule on the same val images before and after.

    Attributes:
        schedule: what it was fine-tuned under.
        before: (top-1 in 0..1, mean cross-entropy) of the untouched weights.
        dense: the same of the teacher, without a schedule.
        fit: how the training went; its `top1` and `loss` are those after it.
        checkpoint: OUT/model.safetensors.
        weights_digest: of these weights.
        config: recipe and distillation.
    """

    schedule: PruningSchedule
    before: tuple[float, float]
    dense: tuple[float, float]
    fit: FitResult
    checkpoint: Path
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
            checkpoint=str(self.checkpoint),
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
) -> FineTuneResult:
    """Fine-tune a model under a schedule and write OUT/model.safetensors and OUT/finetune.json.

    Args:
        model: with the weights that the search saw; changed in place, and left under the schedule.
        teacher: a second model of the same classes, as a rule with the same weights; run dense, not changed.
        data: with the splits train and val.
        schedule: fits the model; ScheduleError otherwise, before anything is written.
        recipe: the settings, such as `finetune_recipe` gives.
        out, resume, device, log, command: as for `train_model`.
        distillation: how much the teacher has to say.
        images: how many of the val split accuracies are measured on, a study's number to compare with
            it; None for all.

    Raises:
        UsageError: OUT holds a training of other settings.
        DataError: a split is missing or broken, or its classes are not the models'.
        TrainingError: the loss is not finite, or OUT cannot be written.
    """
    teaching = distillation or Distillation()
    where = best_device(device)
    for one in (model, teacher):
        data.check_classes(one.num_classes, one.model_name)
    model.set_schedule(schedule)
    teacher.set_schedule(None)
    teacher.to(where).eval().requires_grad_(False)
    val = data.batches(model.pretrained_cfg, model.img_size, images=images)
    before = accuracy(model.to(where), val, where)
    dense = accuracy(teacher, val, where)

    def loss(network: PrunableModel, images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode():
            answers = teacher(images)
        return teaching.loss(network(images), answers.clone(), targets, recipe.label_smoothing)

    identity = {
        "schedule": schedule.text,
        "teacher": weights_digest(teacher),
        "distillation": asdict(teaching),
    }
    fitted = fit(
        model,
        loss,
        data,
        recipe,
        out=Path(out),
        identity=identity,
        resume=resume,
        device=where,
        log=log,
        val_images=images,
    )
    path, digest = save_weights(model, data, Path(out))
    config = {**asdict(recipe), "distillation": asdict(teaching)}
    result = FineTuneResult(schedule, before, dense, fitted, path, digest, config)
    record = {
        **training_record(model, data, recipe, fitted, digest, command),
        "schedule": schedule.text,
        "schedule_hash": schedule.hash,
        "distillation": asdict(teaching),
        "teacher_digest": identity["teacher"],
        "dense_top1": dense[0],
        "dense_loss": dense[1],
        "before_top1": before[0],
        "before_loss": before[1],
    }
    write_json(Path(out) / "finetune.json", record)
    return result
