"""The plain values that cross the border of the store. None of them knows the database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from results.metrics import TOP1
from results.portable import portable
from results.process import Process
from spaces import PruningSchedule, Stage, TokenLayout

FINISHED = ("done", "failed", "stopped")
UNFINISHED = ("queued", "running")
STATES = (*UNFINISHED, *FINISHED)
FAILURES = ("OOM", "NONFINITE", "ERROR", "KILLED", "TIMEOUT")


@dataclass(frozen=True)
class StudySpec:
    """All that decides what a study measures; it is written once and never changed.

    Attributes:
        name: unique in a database.
        model: registered name.
        img_size: (height, width) in pixels.
        num_classes: classes of the head.
        layout: `dataclasses.asdict` of the model's TokenLayout.
        data: the data set as the user wrote it, such as `folder:PATH`.
        data_digest: SHA-256 of the images.
        images: how many images an evaluation runs over.
        confirm_split: the split whose images the front is confirmed on.
        confirm_images: how many of them.
        confirm_digest: SHA-256 of that split.
        weights_digest: SHA-256 of the weights.
        checkpoint: the file the weights came from; None for shipped ones.
        budget: the FLOPs budget as the user wrote it.
        limit: the most FLOPs that a candidate may cost.
        least: FLOPs from which candidates are spread up to `limit`.
        dense_flops: FLOPs of the dense model on one image.
        dense_top1: its score in 0..1 on the same images: accuracy, or what `metric` names.
        dense_loss: its mean cross-entropy.
        dense_latency_ms: its running time per image, if measured.
        space: canonical text of the search space.
        sampler: name of the sampler.
        objectives: names of what is optimised.
        seed: of the sampler and the choice of images.
        versions: of prunefront and the libraries that matter, by name.
        config: the resolved settings of the search.
        metric: what `top1` is in all that is recorded of the study; a name from `results.metrics.METRICS`.
    """

    name: str
    model: str
    img_size: tuple[int, int]
    num_classes: int
    layout: Mapping[str, Any]
    data: str
    data_digest: str
    images: int
    confirm_split: str
    confirm_images: int
    confirm_digest: str
    weights_digest: str
    checkpoint: str | None
    budget: str
    limit: int
    least: int
    dense_flops: int
    dense_top1: float
    dense_loss: float
    dense_latency_ms: float | None
    space: str
    sampler: str
    objectives: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    metric: str = TOP1.name

    @property
    def shown_data(self) -> str:
        """`data` without this machine's folders, for files that are handed on."""
        return portable(self.data)

    @property
    def shown_checkpoint(self) -> str | None:
        """`checkpoint` as the user wrote it, without this machine's folders, for files that are handed on."""
        written = self.config.get("checkpoint") or self.checkpoint
        return None if written is None else portable(str(written))

    @property
    def token_layout(self) -> TokenLayout:
        """The model's blocks and tokens, read back from `layout`."""
        height, width = self.layout["img_size"]
        return TokenLayout(
            model=self.layout["model"],
            img_size=(height, width),
            stages=tuple(Stage(s["blocks"], s["height"], s["width"]) for s in self.layout["stages"]),
            protected=self.layout["protected"],
        )


@dataclass(frozen=True)
class Study:
    """A study as the database holds it, with its counts at the moment of reading.

    Attributes:
        id: of the database.
        created_at: in UTC.
        spec: what it measures.
        done, failed, stopped: evaluations in these states.
        running: claimed by a driver.
        queued: given back, or taken from a driver that is gone, and to be run first.
        confirmed: schedules with a confirmed score, the dense model among them.
    """

    id: int
    created_at: datetime
    spec: StudySpec
    done: int = 0
    failed: int = 0
    stopped: int = 0
    running: int = 0
    queued: int = 0
    confirmed: int = 0

    @property
    def name(self) -> str:
        """The study's name."""
        return self.spec.name


@dataclass(frozen=True)
class Confirmation:
    """A schedule's score on the images that a study's front is confirmed on, more or others than the search's.

    A search keeps what looks best on its images, so its scores lean upwards; confirmed ones do not.

    Attributes:
        schedule_hash: hash of the schedule; that of the empty one for the dense model.
        top1: accuracy in 0..1.
        loss: mean cross-entropy.
        agreement: share of images on which the answer is the dense model's.
        images: how many were run.
        seconds: what it took.
        latency_ms: median running time per image.
        latency_ratio: as a share of the dense model's, the two measured in turns.
        finished_at: set by the store if not given; in UTC.
    """

    schedule_hash: str
    top1: float
    loss: float
    agreement: float
    images: int
    seconds: float
    latency_ms: float
    latency_ratio: float
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Evaluation:
    """What is known of one schedule of a study.

    One that was stopped lost the race against the front after `images` images: its top1, loss and agreement
    are of those only, and no final score of the schedule.

    Attributes:
        schedule: what was evaluated; its hash is unique in a study.
        flops: exact, for one image.
        flops_ratio: as a share of the dense model's.
        state: `done`, `failed` or `stopped`.
        top1: accuracy in 0..1, or what `metric` names; finite if done, None if failed. So is `loss`.
        loss: mean cross-entropy.
        agreement: share of images on which the answer is the dense model's.
        images: how many were run.
        latency_ms: median running time per image, if measured.
        latency_ratio: running time as a share of the dense model's, the two measured in turns, if it was.
        outcomes: `numpy.packbits` of whether each image, in order, was answered rightly; or as the dense
            model does, where the study optimises agreement without top1.
        estimate: of a stopped one, the raced objective on all images as far as can be told.
        seconds: what the evaluation took.
        failure: one of `FAILURES` if failed, else None.
        error: the message that goes with `failure`.
        parameters: the point of the search space; empty for a schedule from the literature.
        sampler_state: JSON that the searcher wants back on resume.
        origin: who proposed it: `published` or a sampler's name.
        number: order in which the study's evaluations finished, from 0; negative before that. Set by the store.
        attempts: how often it was begun: once, and again for each worker or driver that was lost on it.
        finished_at: set by the store if not given; in UTC.
        finetuned_top1: best accuracy after fine-tuning, if it was; read only.
        metric: the study's, what `top1` is; read only.
        confirmed: its score on the study's confirming images, if it was confirmed; read only.
    """

    schedule: PruningSchedule
    flops: int
    flops_ratio: float
    state: str = "done"
    top1: float | None = None
    loss: float | None = None
    agreement: float | None = None
    images: int = 0
    latency_ms: float | None = None
    latency_ratio: float | None = None
    outcomes: bytes | None = None
    estimate: float | None = None
    seconds: float | None = None
    failure: str | None = None
    error: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    number: int = -1
    attempts: int = 1
    finished_at: datetime | None = None
    finetuned_top1: float | None = None
    metric: str = TOP1.name
    confirmed: Confirmation | None = None

    @property
    def hash(self) -> str:
        """The schedule's hash."""
        return self.schedule.hash

    @property
    def reported(self) -> "Confirmation | Evaluation":
        """Whose scores, images and latency are reported: the confirmation's if there is one, else the search's."""
        return self.confirmed or self


@dataclass(frozen=True)
class Driver:
    """A process that searches, or searched, a study.

    Attributes:
        id: of the database.
        process: where it runs.
        versions: of prunefront and the libraries that matter, by name.
        others: how many drivers were at work on the study when it came.
        started_at, beat_at: when it came and when it was last heard of, in UTC by the database's clock.
        left_at: when it left; None if it has not.
    """

    id: int
    process: Process
    versions: Mapping[str, str]
    others: int
    started_at: datetime
    beat_at: datetime
    left_at: datetime | None = None


@dataclass(frozen=True)
class Claim:
    """The right of a driver to record one schedule: void as soon as the schedule is another's, or begun anew.

    Attributes:
        driver: its id.
        attempt: the count of attempts that the claim stands for.
    """

    driver: int
    attempt: int


@dataclass(frozen=True)
class News:
    """What other drivers did to a study, as one of them sees it.

    Attributes:
        finished: evaluations that finished, in order; those of the driver that asks are among them.
        elsewhere: how many schedules other drivers are running.
        waiting: how many are there to take over: queued, or claimed by a driver that is gone or knows nothing of it.
    """

    finished: list[Evaluation]
    elsewhere: int
    waiting: int


@dataclass(frozen=True)
class FineTune:
    """The outcome of one fine-tuning of a schedule that the study has evaluated.

    Attributes:
        schedule_hash: hash of the schedule.
        top1: accuracy in 0..1 after fine-tuning.
        loss: mean cross-entropy after fine-tuning.
        epochs: passes over the training images.
        images: images that `top1` was measured on.
        seconds: what it took.
        checkpoint: the file the weights were written to.
        weights_digest: SHA-256 of the weights.
        config: settings of the fine-tuning.
        curve: one JSON object an epoch.
        versions: of prunefront and the libraries that matter, by name.
        finished_at: set by the store if not given; in UTC.
    """

    schedule_hash: str
    top1: float
    loss: float
    epochs: int
    images: int
    seconds: float
    checkpoint: str
    weights_digest: str
    config: Mapping[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished_at: datetime | None = None
