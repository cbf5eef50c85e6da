"""The messages between the driver and its workers: a worker's setup, its tasks, and its results.

Nothing here imports torch: an actor must start without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.image_set import ImageSet
from search.evaluation.race import Entry
from search.runtime.failures import first_line
from spaces import PruningSchedule
from spaces.errors import EvaluationError

SEARCH, CONFIRM = "search", "confirm"


@dataclass(frozen=True)
class WorkerSetup:
    """All that a worker needs to evaluate as the driver does.

    Attributes:
        model, checkpoint, data, class_order, batch_size: as in `SearchConfig`, resolved.
        img_size: (height, width) in pixels, if one is given.
        images: that candidates are evaluated on.
        confirm: that the front is confirmed on.
        fingerprint: `evaluation_fingerprint` of the driver, which the worker's must equal.
        threads: for torch.
        gpu: whether a GPU is leased to each worker.
        folder: that relative paths start from.
        dense: the dense model's results on `images`.
        prefix_cache: most bytes of features that are kept.
        race_error: of a candidate's races; see `GroupRace`.
        agreement: whether candidates race for agreement with the dense model.
        latency: whether each candidate is timed.
    """

    model: str
    checkpoint: str | None
    data: str
    class_order: str | None
    images: ImageSet
    confirm: ImageSet
    batch_size: int
    fingerprint: Mapping[str, str]
    threads: int
    gpu: bool
    folder: str
    dense: "DenseResult"
    prefix_cache: int
    race_error: float
    agreement: bool
    latency: bool
    img_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class DenseResult:
    """`DenseAnswers` without torch, which unpickling would load before the actor has started.

    Attributes:
        metrics: the fields of `Metrics` by name, without the tally.
        answers: (images, …).
    """

    metrics: dict[str, Any]
    answers: NDArray[Any]


@dataclass(frozen=True)
class Measurement:
    """What a worker measured of one schedule.

    Attributes:
        top1, loss, agreement, images, stopped, estimate, seconds, forward_seconds: as in `Metrics`.
        outcomes: packed by `pack`; None where an image is more than right or wrong.
        latency_ms: milliseconds an image; None if the schedule was not timed.
        latency_ratio: to the dense model's.
    """

    top1: float
    loss: float
    agreement: float
    images: int
    outcomes: bytes | None
    stopped: bool
    estimate: float | None
    seconds: float
    forward_seconds: float
    latency_ms: float | None = None
    latency_ratio: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a schedule has no measurement.

    Attributes:
        kind: one of `results.records.FAILURES`.
        error: the message, in one line.
        seconds: what the attempt took; None if its worker died.
    """

    kind: str
    error: str
    seconds: float | None

    @classmethod
    def of(cls, error: Exception, seconds: float) -> "Failure":
        """Return the failure that an exception stands for.

        >>> Failure.of(ValueError("no such block"), 0.5)
        Failure(kind='ERROR', error='ValueError: no such block', seconds=0.5)
        """
        kind = error.failure if isinstance(error, EvaluationError) else "ERROR"
        return cls(kind, f"{type(error).__name__}: {first_line(error)}", seconds)


def search_task(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the config of a trial that evaluates a group of candidates."""
    return {
        "task": SEARCH,
        "schedules": [entry.schedule.text for entry in entries],
        "flops": [entry.flops for entry in entries],
        "bars": [None if entry.bar is None else pack(entry.bar) for entry in entries],
    }


def task_entries(task: Mapping[str, Any], images: int) -> list[Entry]:
    """Return the candidates of a task that `search_task` made; `images` is how many each runs over."""
    return [
        Entry(PruningSchedule.parse(text), None if bar is None else unpack(bar, images), flops)
        for text, flops, bar in zip(task["schedules"], task["flops"], task["bars"], strict=True)
    ]


def confirm_task(schedule: PruningSchedule) -> dict[str, Any]:
    """Return the config of a trial that confirms a schedule.

    >>> confirm_task(PruningSchedule.parse("4:0.5"))
    {'task': 'confirm', 'schedules': ['4:0.5']}
    """
    return {"task": CONFIRM, "schedules": [schedule.text]}


def pack(outcomes: NDArray[np.bool_]) -> bytes:
    """Return (N,) bool as bits.

    >>> pack(np.array([False, True, False]))
    b'@'
    """
    return np.packbits(outcomes).tobytes()


def unpack(bits: bytes, images: int) -> NDArray[np.bool_]:
    """Return the (images,) bool that `pack` packed.

    >>> unpack(b"@", 3).tolist()
    [False, True, False]
    """
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=images).astype(np.bool_)
