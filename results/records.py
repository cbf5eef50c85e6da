"""The plain values that the store takes and returns. They do not depend on the database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from results.finetuned import FineTune as FineTune  # one of the values of the store
from results.finetuned import FineTuned as FineTuned
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
    """Everything that determines what a study measures. It is written once and never changes.

    Attributes:
        name: unique in a database.
        model: registered name.
        img_size: (height, width) in pixels.
        num_classes: classes of the head.
        layout: `dataclasses.asdict` of the model's `TokenLayout`.
        data: the data set as the user gave it, such as `folder:PATH`.
        data_digest: SHA-256 of the images.
        images: how many images a complete evaluation runs.
        order: the name of the order that they are in, from `search.data.image_order`.
        confirm_split: the split that the front is confirmed on.
        confirm_images: how many of its images.
        confirm_digest: SHA-256 of that split.
        weights_digest: SHA-256 of the weights.
        checkpoint: the file of the weights; None if they ship with the model.
        budget: the FLOPs budget as the user gave it.
        limit: the most FLOPs that a candidate may cost.
        least: the fewest; candidates lie between `least` and `limit`.
        dense_flops: FLOPs of the dense model for one image.
        dense_top1: its score in 0..1 on the same images: accuracy, or the metric that `metric` names.
        dense_loss: its mean cross-entropy.
        dense_latency_ms: its latency in ms per image, if measured.
        space: canonical text of the search space.
        sampler: name of the sampler.
        objectives: names from `results.objectives.OBJECTIVES`.
        seed: seed of the sampler and of the choice of images.
        versions: versions of prunefront and its main libraries, by name.
        config: the resolved settings of the search.
        metric: what every `top1` of the study holds; a name from `results.metrics.METRICS`.
    """

    name: str
    model: str
    img_size: tuple[int, int]
    num_classes: int
    layout: Mapping[str, Any]
    data: str
    data_digest: str
    images: int
    order: str
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
        """`data` without the folders of this machine, for files that are passed on."""
        return portable(self.data)

    @property
    def shown_checkpoint(self) -> str | None:
        """`checkpoint` as the user gave it, without the folders of this machine, for files that are passed on."""
        written = self.config.get("checkpoint") or self.checkpoint
        return None if written is None else portable(str(written))

    @property
    def token_layout(self) -> TokenLayout:
        """The blocks and tokens of the model, from `layout`."""
        height, width = self.layout["img_size"]
        return TokenLayout(
            model=self.layout["model"],
            img_size=(height, width),
            stages=tuple(Stage(s["blocks"], s["height"], s["width"]) for s in self.layout["stages"]),
            protected=self.layout["protected"],
        )


@dataclass(frozen=True)
class Study:
    """A study in the database, with its counts at the time of reading.

    Attributes:
        id: primary key.
        created_at: in UTC.
        spec: what the study measures.
        done, failed, stopped: how many evaluations are in these states.
        running: how many a driver has claimed.
        queued: how many were released by their driver, and run next.
        confirmed: how many schedules have a confirmed score, the dense model included.
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
    """The score of a schedule on the images that confirm the front, which the search did not select on.

    A search keeps the schedules that score best on its images, so their scores are biased upwards; confirmed scores
    are not.

    Attributes:
        schedule_hash: hash of the schedule; for the dense model, that of the empty schedule.
        top1: accuracy in 0..1.
        loss: mean cross-entropy.
        agreement: share of images, in 0..1, on which the prediction equals the dense model's.
        images: how many images were run.
        seconds: how long the evaluation took.
        latency_ms: median latency in ms per image.
        latency_ratio: latency as a share of the dense model's, measured alternately.
        finished_at: in UTC; the store sets it if it is None.
        outcomes: `numpy.packbits` of one bit per image, in order: whether the answer is right. None where an image is
            more than right or wrong, and for confirmations that earlier versions wrote.
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
    outcomes: bytes | None = None


@dataclass(frozen=True)
class Evaluation:
    """One schedule of a study, and its outcome.

    A stopped evaluation lost the race against the front after `images` images. Its top1, loss and agreement cover
    these images only and are not a final score.

    >>> evaluation = Evaluation(PruningSchedule.parse("5:0.8"), 3_000_000, 0.9, top1=0.75, loss=0.9, images=1000)
    >>> evaluation.state, evaluation.reported.top1, evaluation.reported.images
    ('done', 0.75, 1000)

    Attributes:
        schedule: the schedule; its hash is unique in a study.
        flops: exact FLOPs for one image.
        flops_ratio: FLOPs as a share of the dense model's.
        state: one of `STATES`: `queued`, `running`, `done`, `failed` or `stopped`.
        top1: accuracy in 0..1, or the metric that `metric` names; finite if done, None if failed. So is `loss`.
        loss: mean cross-entropy.
        agreement: share of images, in 0..1, on which the prediction equals the dense model's.
        images: how many images were run.
        latency_ms: median latency in ms per image, if measured.
        latency_ratio: latency as a share of the dense model's, measured alternately, if measured.
        outcomes: `numpy.packbits` of one bit per image, in order: whether the prediction is correct or, if the study
            optimises agreement and not top1, equal to the dense model's.
        estimate: for a stopped evaluation, the estimate of the raced objective on all images.
        seconds: how long the evaluation took.
        failure: one of `FAILURES` if failed, else None.
        error: the message that belongs to `failure`.
        parameters: the point in the search space; empty for a published schedule.
        sampler_state: JSON that the sampler needs to resume.
        origin: what proposed it: `published`, or the name of a sampler.
        number: position in the order of finishing, from 0; negative before. The store sets it.
        attempts: how often it was started: once, plus once for each worker or driver lost while running it.
        finished_at: in UTC; the store sets it if it is None.
        finetuned: what its latest fine-tunings reach; set when read, None without a fine-tuning.
        metric: the metric of the study; set when read.
        confirmed: the score on the confirming images; set when read, None if not confirmed.
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
    finetuned: FineTuned | None = None
    metric: str = TOP1.name
    confirmed: Confirmation | None = None

    @property
    def hash(self) -> str:
        """The schedule's hash."""
        return self.schedule.hash

    @property
    def finetuned_top1(self) -> float | None:
        """The mean accuracy of its latest fine-tunings, in 0..1; None without a fine-tuning."""
        return None if self.finetuned is None else self.finetuned.top1

    @property
    def reported(self) -> "Confirmation | Evaluation":
        """Whose scores, images and latency are reported: the confirmation's if there is one, else the search's."""
        return self.confirmed or self


@dataclass(frozen=True)
class Driver:
    """A process that searches, or has searched, a study.

    Attributes:
        id: primary key.
        process: the process.
        versions: versions of prunefront and its main libraries, by name.
        others: how many other drivers were active when it was registered.
        started_at: when it was registered, in UTC by the database's clock.
        beat_at: its last heartbeat, by the same clock.
        left_at: when it was released, by the same clock; None if it was not.
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
    """The right of a driver to record one schedule. It is void once the schedule changes hands or is tried again.

    Attributes:
        driver: id of the driver.
        attempt: the attempt, counted from 1, that the claim is for.
    """

    driver: int
    attempt: int


@dataclass(frozen=True)
class News:
    """What changed in a study since one of its drivers last asked.

    Attributes:
        finished: evaluations that finished, in order; those of the driver that asks are included.
        elsewhere: how many schedules other drivers are running.
        waiting: how many schedules can be taken over: they are queued, their driver has expired, or they are claimed
            by the driver that asks and it does not know.
    """

    finished: list[Evaluation]
    elsewhere: int
    waiting: int
