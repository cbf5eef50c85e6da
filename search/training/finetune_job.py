"""A fine-tuning as plain values, which every process that takes part in it receives."""

from dataclasses import asdict, dataclass, field

from search.data.dataset import ImageData
from search.data.image_set import VAL, ImageSet
from search.training.checkpoint import Scores
from search.training.distillation import Distillation
from search.training.recipe import Recipe
from search.training.trainer import Trainer, TrainingJob
from search.training.training_run import TrainingRun
from spaces import PruningSchedule
from ssm_models import PrunableModel, weights_digest


@dataclass(frozen=True)
class FineTuneJob:
    """What a model is fine-tuned for.

    Attributes:
        schedule: the schedule to fine-tune under.
        recipe: the hyperparameters; see `finetune_recipe` for the defaults of a fine-tuning.
        distillation: how much the student learns from the teacher.
        images: the images that all scores are of; None for all of val.
        dense: the teacher's scores on these images if they are known; otherwise they are measured.
    """

    schedule: PruningSchedule
    recipe: Recipe
    distillation: Distillation = field(default_factory=Distillation)
    images: ImageSet | None = None
    dense: Scores | None = None

    @property
    def split(self) -> str:
        """The split that all scores are of."""
        return VAL if self.images is None else self.images.split

    def trainer(self, model: PrunableModel, teacher: PrunableModel, data: ImageData, run: TrainingRun) -> Trainer:
        """Return a trainer of the model, which is set to the schedule; the teacher is made dense and frozen.

        Raises:
            DataError: a split is missing or broken, or its classes are not the models'.
            ScheduleError: the schedule does not fit the model.
            UsageError, TrainingError: as `Trainer`.
        """
        for network in (model, teacher):
            data.check_model(network)
        model.set_schedule(self.schedule)
        teacher.set_schedule(None)
        teacher.eval().requires_grad_(False)
        identity = {
            "schedule": self.schedule.text,
            "teacher": weights_digest(teacher),
            "distillation": asdict(self.distillation),
        }
        job = TrainingJob(
            loss=self.distillation.of(teacher.to(run.torch_device), self.recipe.label_smoothing),
            data=data,
            recipe=self.recipe,
            identity=identity,
            images=self.images,
            references={"dense": self.dense or teacher, "before": model},
        )
        return Trainer(model, job, run)
