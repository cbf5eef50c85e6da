"""All evaluations of a study as columns, for the table of the page."""

from collections.abc import Collection, Sequence
from typing import Any

from results.objectives import share_interval
from results.records import Evaluation


def evaluation_columns(evaluations: Sequence[Evaluation], front: Collection[str]) -> dict[str, list[Any]]:
    """Return the columns of the table by name, one value for each evaluation; None where it has no value.

    Args:
        evaluations: in any state.
        front: hashes of the evaluations on the front.

    Returns:
        Columns of equal length. Scores and shares are in 0..1; `low` and `high` are the 95 % interval of `top1`.
        `tuned` is the mean of the latest fine-tunings, on the images `tuned_on`.
    """
    done = [e.state == "done" for e in evaluations]
    ends = [share_interval(e, "top1") or (None, None) for e in evaluations]
    return {
        "number": [e.number for e in evaluations],
        "state": [
            "front" if e.hash in front else e.failure or "failed" if e.state == "failed" else e.state
            for e in evaluations
        ],
        "top1": [e.reported.top1 if ok else None for e, ok in zip(evaluations, done, strict=True)],
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
        "tuned": [e.finetuned_top1 for e in evaluations],
        "tuned_on": [e.finetuned and e.finetuned.scored_on for e in evaluations],
        "share": [e.flops_ratio for e in evaluations],
        "images": [e.reported.images for e in evaluations],
        "origin": [e.origin for e in evaluations],
        "schedule": [e.schedule.text for e in evaluations],
        "hash": [e.hash for e in evaluations],
    }
