"""What a search works on, opened and checked: model, images, cost table and space."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import ssm_models
from results.objectives import OBJECTIVES
from results.records import StudySpec
from search.config import REST, SearchConfig
from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageChoice, ImageSet
from search.data.task import Task
from search.evaluation.evaluator import Evaluator
from search.evaluation.metrics import DenseAnswers
from search.evaluation.protocol import DenseResult, WorkerSetup
from search.models import evaluation_fingerprint, open_model
from search.runtime.versions import versions
from search.study_data import open_study_data, reading
from spaces import PruningSchedule
from spaces.errors import UsageError
from spaces.space import SearchSpace, make_space
from ssm_models import CostTable, PrunableModel
from ssm_models.checkpoints import is_path

SHARES_OF_IMAGES = ("top1", "agreement")  # objectives in which two candidates can race image by image


@dataclass(frozen=True)
class SearchSetup:
    """All that a search must know before it starts.

    Attributes:
        config: the settings.
        data: the data set.
        data_digest: of its val split.
        images: that an evaluation runs over, of the val split.
        confirm: that the front is confirmed on.
        confirm_digest: of the split of these images.
        model: the dense model with its weights.
        weights_digest: of the model.
        table: what schedules cost.
        space: where candidates come from, within the budget.
        device: where the driver runs the dense model.
    """

    config: SearchConfig
    data: ImageData
    data_digest: str
    images: ImageSet
    confirm: ImageSet
    confirm_digest: str
    model: PrunableModel
    weights_digest: str
    table: CostTable
    space: SearchSpace
    device: str

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """The objectives by the store's names, where the score is `top1` whatever the task."""
        return stored_objectives(self.config.objective, self.data.task)

    @cached_property
    def outcome_objective(self) -> str | None:
        """The objective that the outcome of an image counts for; None if there is none to race for."""
        return raced_objective(self.objectives)

    @property
    def raced(self) -> str | None:
        """The objective that candidates race for; None if they do not race."""
        races = self.config.race_error and self.data.task.metric.of_images
        return self.outcome_objective if races else None

    @property
    def order(self) -> str:
        """The name of the order that the images are in."""
        return self.images.order

    def in_order(self, order: str) -> "SearchSetup":
        """Return this setup with the images in another order, that of a study which was begun with it."""
        return replace(self, images=replace(self.images, order=order), confirm=replace(self.confirm, order=order))

    def dense_answers(self) -> tuple[DenseAnswers, float]:
        """Run the dense model over the images with an evaluation's number of threads, then move it back to the CPU.

        Returns:
            Its answers, and its latency in milliseconds an image.

        Raises:
            EvaluationError: it has no finite answers, or does not fit into memory.
        """
        model, config = self.model, self.config
        batches = self.data.batches(
            model.pretrained_cfg,
            model.img_size,
            images=self.images.images,
            batch_size=config.batch_size,
            order=self.images.order,
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(config.cpus_per_trial)
        try:
            evaluator = Evaluator(model, batches, self.device, agreement=self.outcome_objective == "agreement")
            return evaluator.dense_answers, evaluator.latency(PruningSchedule()).ms
        finally:
            torch.set_num_threads(threads)
            model.cpu()

    def worker_setup(self, dense: DenseAnswers) -> WorkerSetup:
        """Return what a worker needs to evaluate as this driver does; `dense` are the dense model's answers."""
        config = self.config
        return WorkerSetup(
            model=config.model,
            checkpoint=config.checkpoint,
            data=config.data,
            class_order=self.data.class_order,
            images=self.images,
            confirm=self.confirm,
            batch_size=config.batch_size,
            fingerprint=evaluation_fingerprint(self.model, self.data, self.confirm),
            threads=config.cpus_per_trial,
            gpu=config.gpus_per_trial > 0,
            folder=str(Path.cwd()),
            dense=DenseResult(asdict(replace(dense.metrics, tally=None)), dense.answers.numpy()),
            prefix_cache=config.prefix_cache_bytes,
            race_error=config.race_error,
            agreement=self.outcome_objective == "agreement",
            latency="latency" in self.objectives,
            img_size=self.model.img_size,
        )

    def spec(self) -> dict[str, Any]:
        """Return the fields of `StudySpec` without the dense model's metrics."""
        config, model = self.config, self.model
        checkpoint = config.checkpoint
        if checkpoint is not None and is_path(checkpoint):
            checkpoint = str(Path(checkpoint).absolute())
        return {
            "name": config.study,
            "model": config.model,
            "img_size": model.img_size,
            "num_classes": model.num_classes,
            "layout": asdict(model.layout),
            "data": config.data,
            "data_digest": self.data_digest,
            "images": self.images.images,
            "order": self.order,
            "confirm_split": config.confirm_split,
            "confirm_images": self.confirm.images,
            "confirm_digest": self.confirm_digest,
            "weights_digest": self.weights_digest,
            "checkpoint": checkpoint,
            "budget": str(self.config.budget),
            "limit": self.space.limit,
            "least": self.space.least,
            "dense_flops": self.table.dense,
            "space": self.space.text,
            "sampler": config.sampler,
            "objectives": self.objectives,
            "metric": self.data.task.metric.name,
            "seed": config.seed,
            "versions": versions(),
            "config": config.as_dict() | reading(self.data),
        }


def open_setup(config: SearchConfig, begun: StudySpec | None = None) -> SearchSetup:
    """Open and check everything that the settings name; nothing is written.

    Args:
        config: the settings.
        begun: the study that is resumed, whose order of classes and image size hold unless the settings give others.

    Raises:
        UsageError, CheckpointError, DataError: something that they name is wrong.
    """
    ssm_models.model_info(config.model)  # refuses a wrong name before anything is read
    data = (
        open_data(config.data, class_order=config.class_order)
        if begun is None
        else open_study_data(begun, config.data, config.class_order)
    )
    stored_objectives(config.objective, data.task)
    images = ImageSet("val", min(config.images or data.size(), data.size()))
    confirm = confirm_set(config, data, images)
    size = begun.img_size if begun is not None and config.sides is None else config.sides
    model = open_model(config.model, config.checkpoint, data, size)
    digest = data.digest()
    table = ssm_models.cost_table(model)
    space = make_space(config.space, model.layout, table.flops, config.budget, model.offers)
    gpu = config.gpus_per_trial > 0 and torch.cuda.is_available()
    return SearchSetup(
        config=config,
        data=data,
        data_digest=digest,
        images=images,
        confirm=confirm,
        confirm_digest=digest if confirm.split == "val" else data.digest(confirm.split),
        model=model,
        weights_digest=ssm_models.weights_digest(model),
        table=table,
        space=space,
        device="cuda" if gpu else "cpu",
    )


def raced_objective(objectives: Sequence[str]) -> str | None:
    """Return the objective that a race decides: the one beside FLOPs if it is a share of images, else None.

    >>> raced_objective(("top1", "flops"))
    'top1'
    >>> raced_objective(("loss", "flops")) is None
    True
    """
    others = [name for name in objectives if name != "flops"]
    return others[0] if len(objectives) == 2 and len(others) == 1 and others[0] in SHARES_OF_IMAGES else None


def stored_objectives(names: Sequence[str], task: Task) -> tuple[str, ...]:
    """Return objectives by the store's names; the score may be given as `top1` or by the metric of the task.

    Raises:
        UsageError: a name is the metric of another task, or an objective is given by both names.
    """
    for name in names:
        if name not in OBJECTIVES and name != task.metric.name:
            raise UsageError(f"objective {name!r}: the score of {task.name} is {task.metric.name}")
    found = tuple("top1" if name == task.metric.name else name for name in names)
    if len(set(found)) < len(found):
        raise UsageError(f"objective {', '.join(names)!r}: name each objective once")
    return found


def confirm_set(config: SearchConfig, data: ImageData, images: ImageSet) -> ImageSet:
    """Return the images on which the front is confirmed; `images` are those that the search runs over.

    Raises:
        UsageError: val has none left.
        DataError: the split is missing.
    """
    choice = ImageChoice(config.confirm_split, images=config.confirm_images, option="--confirm-split")
    if choice.split == REST and images.images >= data.size():
        raise UsageError(
            f"--confirm-split rest: the search runs over all {images.images} images of val; lower --images"
        )
    return choice.image_set(data, order=images.order, searched=images)


def check_dense(dense: DenseAnswers, setup: SearchSetup) -> str | None:
    """Return a warning if the dense model hardly beats guessing, since its front then means nothing."""
    task = setup.data.task
    chance = task.chance(setup.data.num_classes)
    if dense.metrics.top1 > 1.5 * chance or setup.config.checkpoint == ssm_models.checkpoints.RANDOM:
        return None
    return (
        f"warning: the dense model's {task.metric.label} is {dense.metrics.top1:.3f}, near chance ({chance:.3f}); "
        "do the weights and the images belong together?"
    )
