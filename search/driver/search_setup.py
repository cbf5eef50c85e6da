"""What a search is about, opened and checked: model, images, cost table, space, and its study in the store."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import ssm_models
from results.objectives import OBJECTIVES
from results.records import Study, StudySpec
from results.store.database import parse_address
from results.store.store import Store
from search.config import REST, SearchConfig
from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageSet
from search.data.task import Task
from search.driver.study_state import raced_objective
from search.evaluation.evaluator import DenseAnswers, Evaluator
from search.models import open_model
from search.runtime.versions import versions
from spaces import PruningSchedule
from spaces.errors import StudyExistsError, StudyMismatchError, UnknownNameError, UsageError
from spaces.space import SearchSpace, make_space
from ssm_models import CostTable, PrunableModel

# What a resumed search must share with the study's beginning: a field of the spec, and its name for people.
IDENTITY: Mapping[str, str] = {
    "model": "--model",
    "img_size": "image size",
    "num_classes": "number of classes",
    "weights_digest": "weights (--checkpoint)",
    "data_digest": "images (--data)",
    "images": "--images",
    "limit": "--flops-budget, in FLOPs",
    "least": "the least FLOPs of --flops-budget",
    "confirm_split": "--confirm-split",
    "confirm_images": "--confirm-images",
    "confirm_digest": "images of --confirm-split",
    "space": "--space",
    "sampler": "--sampler",
    "objectives": "--objective",
    "seed": "--seed",
}


@dataclass(frozen=True)
class SearchSetup:
    """All that a search needs to know before it starts, found out in the driver.

    Attributes:
        images: that an evaluation runs over, of the val split.
        confirm: that the front is confirmed on.
        confirm_digest: of the split they are of.
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

    @property
    def raced(self) -> str | None:
        """The objective that candidates race in; None if they do not."""
        races = self.config.race_error and self.data.task.metric.of_images
        return raced_objective(self.objectives) if races else None

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives by the store's names, where the score is `top1` whatever the task."""
        return stored_objectives(self.config.objective, self.data.task)

    def dense_answers(self) -> tuple[DenseAnswers, float]:
        """Run the dense model over the images, with the threads that an evaluation has; it is then back on the CPU.

        Returns:
            Its answers, and its running time in milliseconds an image.

        Raises:
            SearchError: it has no finite answers, or does not fit into memory.
        """
        model, config = self.model, self.config
        batches = self.data.batches(
            model.pretrained_cfg, model.img_size, images=self.images.images, batch_size=config.batch_size
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(config.cpus_per_trial)
        try:
            agreement = raced_objective(self.objectives) == "agreement"  # what outcomes are of, raced or not
            evaluator = Evaluator(model, batches, self.device, agreement=agreement)
            return evaluator.dense_answers, evaluator.latency(PruningSchedule()).ms
        finally:
            torch.set_num_threads(threads)
            model.cpu()

    def spec(self) -> dict[str, Any]:
        """Return the fields of `StudySpec` but for the dense model's metrics."""
        config, model = self.config, self.model
        checkpoint = config.checkpoint
        if checkpoint not in (None, ssm_models.checkpoints.RANDOM):
            checkpoint = str(Path(str(checkpoint)).absolute())
        return {
            "name": config.study,
            "model": config.model,
            "img_size": model.img_size,
            "num_classes": model.num_classes,
            "layout": asdict(model.layout),
            "data": config.data,
            "data_digest": self.data_digest,
            "images": self.images.images,
            "confirm_split": self.config.confirm_split,
            "confirm_images": self.confirm.images,
            "confirm_digest": self.confirm_digest,
            "weights_digest": self.weights_digest,
            "checkpoint": checkpoint,
            "budget": str(config.budget),
            "limit": self.space.limit,
            "least": self.space.least,
            "dense_flops": self.table.dense,
            "space": self.space.text,
            "sampler": config.sampler,
            "objectives": self.objectives,
            "metric": self.data.task.metric.name,
            "seed": config.seed,
            "versions": versions(),
            "config": config.as_dict(),
        }


def open_setup(config: SearchConfig) -> SearchSetup:
    """Open and check everything that the settings name; nothing is written.

    Raises:
        UsageError, CheckpointError, DataError: as the parts do.
    """
    ssm_models.model_info(config.model)  # a wrong name is found before anything is read
    data = open_data(config.data)
    stored_objectives(config.objective, data.task)
    images = ImageSet("val", min(config.images or data.size(), data.size()))
    confirm = confirm_set(config, data, images)
    digest = data.digest()
    model = open_model(config.model, config.checkpoint, data)
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


def stored_objectives(names: Sequence[str], task: Task) -> tuple[str, ...]:
    """Return objectives by the store's names; the score may be called `top1`, whatever the task, or by its metric.

    Raises:
        UsageError: the metric of another task, or an objective by both names.
    """
    for name in names:
        if name not in OBJECTIVES and name != task.metric.name:
            raise UsageError(f"objective {name!r}: the score of {task.name} is {task.metric.name}")
    found = tuple("top1" if name == task.metric.name else name for name in names)
    if len(set(found)) < len(found):
        raise UsageError(f"objective {', '.join(names)!r}: name each objective once")
    return found


def confirm_set(config: SearchConfig, data: ImageData, images: ImageSet) -> ImageSet:
    """Return the images on which the front is confirmed.

    Raises:
        UsageError: none are left of val.
        DataError: the split is missing.
    """
    split, skip = (config.confirm_split, 0) if config.confirm_split != REST else ("val", images.images)
    there = data.size(split) - skip
    if there < 1:
        raise UsageError(
            f"--confirm-split rest: the search runs over all {images.images} images of val; lower --images"
        )
    wanted = there if config.confirm_images is None else config.confirm_images
    return ImageSet(split, min(wanted, there), skip)


def open_study(subject: SearchSetup, url: str) -> tuple[Store, Study, DenseAnswers]:
    """Open the store and the study, beginning it if it is new; nothing is written before all is checked.

    Raises:
        StoreError: the database cannot be read or written.
        StudyMismatchError: the study was begun with other settings.
        SearchError: the dense model has no finite answers.
    """
    address = parse_address(url)
    # A new file is made only when all is known to be well; one that is there is looked into at once.
    if address.get_backend_name() == "sqlite" and os.path.lexists(address.database or ""):
        with Store.open(url) as store, suppress(UnknownNameError):
            _same_study(store, subject)
    dense, latency = subject.dense_answers()
    measured: dict[str, Any] = {
        "dense_top1": dense.metrics.top1,
        "dense_loss": dense.metrics.loss,
        "dense_latency_ms": latency,
    }
    store = Store.open(url, create=True)
    try:
        with suppress(StudyExistsError):  # it is gone on with, or another driver began it meanwhile
            store.create_study(StudySpec(**subject.spec(), **measured))
        return store, _same_study(store, subject), dense
    except BaseException:
        store.close()
        raise


def _same_study(store: Store, subject: SearchSetup) -> Study:
    study = store.study(subject.config.study)
    check_same(study.spec, subject.spec(), study.name)
    return study


def check_same(begun: StudySpec, now: Mapping[str, Any], name: str) -> None:
    """Raise a StudyMismatchError that names each difference which would mix two searches."""
    differences = []
    for field, words in IDENTITY.items():
        was, is_now = getattr(begun, field), now[field]
        if was != is_now:
            differences.append(f"{words} was {_shown(was)}, now {_shown(is_now)}")
    if differences:
        raise StudyMismatchError(
            f"study {name!r} was begun with other settings: {'; '.join(differences)}; "
            "give the same ones, or another --study"
        )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "×".join(map(str, value)) if all(isinstance(v, int) for v in value) else ", ".join(map(str, value))
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text  # a digest


def check_dense(dense: DenseAnswers, subject: SearchSetup) -> str | None:
    """Return a warning if the dense model hardly beats guessing: then the front says nothing."""
    task = subject.data.task
    chance = task.chance(subject.data.num_classes)
    if dense.metrics.top1 > 1.5 * chance or subject.config.checkpoint == ssm_models.checkpoints.RANDOM:
        return None
    return (
        f"warning: the dense model's {task.metric.label} is {dense.metrics.top1:.3f}, near chance ({chance:.3f}); "
        "do the weights and the images belong together?"
    )
