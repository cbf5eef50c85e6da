"""What driver and workers say to each other, in plain values: a worker's setup, its tasks, and its results.

Nothing here imports torch, so that the driver can read results and an actor can start without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.image_set import ImageSet
from search.runtime.failures import first_line
from spaces import PruningSchedule
from spaces.errors import EvaluationError

SEARCH, CONFIRM = "search", "confirm"


@dataclass(frozen=True)
class WorkerSetup:
    """All that a worker needs to evaluate as the driver does.

    Attributes:
        model, checkpoint, data, batch_size: as in `SearchConfig`, resolved.
        images: that candidates are evaluated on.
        confirm: that the front is confirmed on.
        fingerprint: `fingerprint` of the driver, which the worker must have.
        threads: for torch.
        gpu: whether a GPU is leased to each worker.
        folder: that relative paths are meant from.
        dense: the dense model on `images`; arrays in place of tensors, which would make the actor load torch
            before it has started.
        prefix_cache: bytes of features that are kept.
        race_error: of a race.
        agreement: whether a race is one of agreement.
        latency: whether running time is measured of each candidate.
    """

    model: str
    checkpoint: str | None
    data: str
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


@dataclass(frozen=True)
class DenseResult:
    """`DenseAnswers` without torch: metrics by name, and the answers (images, …)."""

    metrics: dict[str, Any]
    answers: NDArray[Any]


def search_task(
    candidates: Sequence[tuple[PruningSchedule, int | None, NDArray[np.bool_] | None]],
) -> dict[str, Any]:
    """Return the config of a trial that evaluates a brood.

    Args:
        candidates: schedules, their FLOPs (None: not to race in the brood), and the outcomes that each races against.
    """
    schedules = [schedule.text for schedule, _, _ in candidates]
    flops = [cost for _, cost, _ in candidates]
    bars = [None if bar is None else pack(bar) for _, _, bar in candidates]
    return {"task": SEARCH, "schedules": schedules, "flops": flops, "bars": bars}


def confirm_task(schedule: PruningSchedule) -> dict[str, Any]:
    """Return the config of a trial that confirms a schedule."""
    return {"task": CONFIRM, "schedules": [schedule.text]}


def failure(error: Exception, seconds: float) -> dict[str, Any]:
    """Return what a trial reports of an evaluation that went wrong."""
    return {
        "failure": error.failure if isinstance(error, EvaluationError) else "ERROR",
        "error": f"{type(error).__name__}: {first_line(error)}",
        "seconds": seconds,
    }


def pack(outcomes: NDArray[np.bool_]) -> bytes:
    """Return (N,) bool as bits."""
    return np.packbits(outcomes).tobytes()


def unpack(bits: bytes, images: int) -> NDArray[np.bool_]:
    """Return the (images,) bool that `pack` packed."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=images).astype(np.bool_)
