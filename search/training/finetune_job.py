"""A fine-tuning as plain values, the same for every process that takes part in it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from search.data.dataset import ImageData
from search.training.checkpoint import Scores
from search.training.data_parallel import Share
from search.training.distillation import Distillation
from search.training.epoch_log import TrainingLog
from search.training.fit import ONE, FitResult, best_device, fit
from search.training.recipe import Pace, Recipe
from spaces import PruningSchedule
from ssm_models import PrunableModel, weights_digest


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning as plain values, the same for every process that takes part in it; as for `finetune_model`."""

    schedule: str
    recipe: Recipe
    distillation: Distillation
    out: str
    images: int | None
    pace: Pace
    dense: Scores | None

    def run(
        self,
        model: PrunableModel,
        teacher: PrunableModel,
        data: ImageData,
        *,
        resume: bool = True,
        device: str | torch.device | None = None,
        log: TrainingLog | None = None,
        share: Share = ONE,
        delegate: Callable[[], None] | None = None,
    ) -> FitResult:
        """Train this process's share; arguments as for `finetune_model` and `fit`."""
        where = best_device(device)
        for one in (model, teacher):
            data.check_model(one)
        model.set_schedule(PruningSchedule.parse(self.schedule))
        teacher.set_schedule(None)
        teacher.eval().requires_grad_(False)
        identity = {
            "schedule": self.schedule,
            "teacher": weights_digest(teacher),
            "distillation": asdict(self.distillation),
        }
        teacher.to(where)
        return fit(
            model,
            self.distillation.of(teacher, self.recipe.label_smoothing),
            data,
            self.recipe,
            out=Path(self.out),
            identity=identity,
            resume=resume,
            device=where,
            log=log,
            val_images=self.images,
            pace=self.pace,
            references={"dense": self.dense or teacher, "before": model},
            share=share,
            delegate=delegate,
        )
