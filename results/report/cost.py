"""The cost of a search: evaluations, time, images and failures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from results.records import Evaluation

PAUSE = 600.0  # seconds without an evaluation after which the search counts as paused


@dataclass(frozen=True)
class SearchCost:
    """The cost of a search.

    Attributes:
        evaluations: how many finished: done, failed or stopped.
        stopped: how many of them were stopped.
        seconds: the time of all evaluations together.
        median: the median time in seconds of those that are done; None if there are none.
        cpu_seconds: `seconds` times the CPU cores of an evaluation.
        images: how many images were run.
        saved: the share of images, in 0..1, that early stopping saved of those that complete evaluations run.
        per_hour: evaluations an hour, pauses excluded; None if the times are unknown.
        failures: for each kind of failure, its name, its count and its first message.
        origins: for each origin, its name and its count.
    """

    evaluations: int
    stopped: int
    seconds: float
    median: float | None
    cpu_seconds: float
    images: int
    saved: float
    per_hour: float | None
    failures: list[tuple[str, int, str]]
    origins: list[tuple[str, int]]

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], images: int | None = None, cpus: float = 1) -> "SearchCost":
        """Sum up evaluations.

        Args:
            evaluations: all evaluations of a study.
            images: how many images a complete evaluation runs; if None, nothing counts as saved.
            cpus: CPU cores of an evaluation.
        """
        times = sorted(e.seconds for e in evaluations if e.seconds is not None and e.state == "done")
        failed = [e for e in evaluations if e.state == "failed"]
        messages: dict[str, str] = {}
        for e in failed:
            messages.setdefault(e.failure or "ERROR", e.error or "")
        counts = Counter(e.failure or "ERROR" for e in failed)
        seconds = sum(e.seconds or 0.0 for e in evaluations)
        stopped = [e for e in evaluations if e.state == "stopped"]
        ran = sum(e.images for e in evaluations)
        saved = sum(max(0, (images or e.images) - e.images) for e in stopped)
        return cls(
            evaluations=len(evaluations),
            stopped=len(stopped),
            seconds=seconds,
            median=times[len(times) // 2] if times else None,
            cpu_seconds=seconds * cpus,
            images=ran,
            saved=saved / (ran + saved) if ran + saved else 0.0,
            per_hour=_per_hour(evaluations),
            failures=[(kind, count, messages[kind]) for kind, count in counts.most_common()],
            origins=Counter(e.origin or "unknown" for e in evaluations).most_common(),
        )


def _per_hour(evaluations: Sequence[Evaluation]) -> float | None:
    """Return the evaluations an hour from the first to the last that finished, pauses excluded."""
    times = sorted(e.finished_at for e in evaluations if e.finished_at is not None)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    if not gaps:
        return None
    working = [gap for gap in gaps if gap <= max(PAUSE, 20 * median(gaps))]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None
