"""What is recorded of the results that workers report."""

from dataclasses import replace

from results import Evaluation
from results.records import Confirmation
from search.evaluation.protocol import Failure, Measurement
from spaces import PruningSchedule


def evaluation_of(running: Evaluation, result: Measurement | Failure) -> Evaluation:
    """Return a running evaluation with its result."""
    if isinstance(result, Failure):
        return replace(running, state="failed", failure=result.kind, error=result.error, seconds=result.seconds)
    return replace(
        running,
        state="stopped" if result.stopped else "done",
        top1=result.top1,
        loss=result.loss,
        agreement=result.agreement,
        images=result.images,
        latency_ms=result.latency_ms,
        latency_ratio=result.latency_ratio,
        outcomes=result.outcomes,
        estimate=result.estimate,
        seconds=result.seconds,
    )


def confirmation_of(schedule: PruningSchedule, result: Measurement) -> Confirmation:
    """Return the confirmed score of a schedule; `result` must hold its latency."""
    assert result.latency_ms is not None and result.latency_ratio is not None
    return Confirmation(
        schedule.hash,
        top1=result.top1,
        loss=result.loss,
        agreement=result.agreement,
        images=result.images,
        seconds=result.seconds,
        latency_ms=result.latency_ms,
        latency_ratio=result.latency_ratio,
        outcomes=result.outcomes,
    )
