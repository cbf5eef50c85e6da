"""What a search took: evaluations, time, images, and what went wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from results.records import Evaluation

PAUSE = 600.0  # seconds without an evaluation from which on the search is taken to have rested


@dataclass(frozen=True)
class Cost:
    """What the search took.

    Attributes:
        evaluations: recorded ones: done, failed or stopped.
        stopped: how many of them were stopped.
        seconds: all evaluations together, by the clock of whoever ran them.
        median: seconds of the middle one that was done.
        cpu_seconds: `seconds` times the CPU cores that each evaluation had.
        images: that were run.
        spared: share of images that races spared, of those that all evaluations would have run to their end; 0..1.
        hourly: evaluations an hour by the clock, rests aside; None where their times are not known.
        failures: kind, count, and the first message of each kind.
        origins: how many came from whom.
    """

    evaluations: int
    stopped: int
    seconds: float
    median: float | None
    cpu_seconds: float
    images: int
    spared: float
    hourly: float | None
    failures: list[tuple[str, int, str]]
    origins: list[tuple[str, int]]

    @classmethod
    def of(cls, evaluations: Sequence[Evaluation], images: int | None = None, cpus: float = 1) -> "Cost":
        """Add up.

        Args:
            evaluations: all of a study.
            images: of an evaluation that runs to its end; None: as many as were run.
            cpus: CPU cores of each.
        """
        took = sorted(e.seconds for e in evaluations if e.seconds is not None and e.state == "done")
        failed = [e for e in evaluations if e.state == "failed"]
        messages: dict[str, str] = {}
        for e in failed:
            messages.setdefault(e.failure or "ERROR", e.error or "")
        counts = Counter(e.failure or "ERROR" for e in failed)
        seconds = sum(e.seconds or 0.0 for e in evaluations)
        stopped = [e for e in evaluations if e.state == "stopped"]
        ran = sum(e.images for e in evaluations)
        spared = sum(max(0, (images or e.images) - e.images) for e in stopped)
        return cls(
            evaluations=len(evaluations),
            stopped=len(stopped),
            seconds=seconds,
            median=took[len(took) // 2] if took else None,
            cpu_seconds=seconds * cpus,
            images=ran,
            spared=spared / (ran + spared) if ran + spared else 0.0,
            hourly=_hourly(evaluations),
            failures=[(kind, count, messages[kind]) for kind, count in counts.most_common()],
            origins=Counter(e.origin or "unknown" for e in evaluations).most_common(),
        )


def _hourly(evaluations: Sequence[Evaluation]) -> float | None:
    """Return evaluations an hour between the first and the last that finished, without the rests."""
    times = sorted(e.finished_at for e in evaluations if e.finished_at is not None)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    if not gaps:
        return None
    working = [gap for gap in gaps if gap <= max(PAUSE, 20 * median(gaps))]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None
