"""What a study can optimise: the objectives by name, an evaluation's values of them, and the front they give."""

from collections.abc import Mapping, Sequence
from typing import cast

from results.intervals import wilson_interval
from results.metrics import METRICS
from results.pareto import pareto_front
from results.records import Evaluation
from spaces.errors import UsageError

# Whether more of it is better.
OBJECTIVES: Mapping[str, bool] = {"top1": True, "flops": False, "loss": False, "agreement": True, "latency": False}


def objective_value(evaluation: Evaluation, objective: str) -> float | None:
    """Return an evaluation's value of an objective; None if it has none.

    FLOPs are as recorded. The others, latency as a share of the dense model's running time, are the
    *standing* score, the confirmed one where there is one; an evaluation that is not done has none, since
    what a stopped one has was measured on some of the images only.

    Args:
        evaluation: in any state.
        objective: a name from `OBJECTIVES`.
    """
    if objective == "flops":
        return float(evaluation.flops)
    if evaluation.state != "done":
        return None
    score: float | None = getattr(evaluation.reported, "latency_ratio" if objective == "latency" else objective)
    return score


def objectives_front(points: Sequence[Sequence[float | None]], objectives: Sequence[str]) -> list[int]:
    """Return the indices of the best points, those that are best in the first objective first.

    For two objectives and more it is their Pareto front. A single objective has no front; all points that
    share its best value are returned then.

    Args:
        points: a value for each objective; a point that lacks one is never among the best.
        objectives: names from `OBJECTIVES`.
    """
    complete = [i for i, point in enumerate(points) if None not in point]
    known = [cast(Sequence[float], points[i]) for i in complete]
    best = pareto_front(known, [OBJECTIVES[name] for name in objectives])
    if len(objectives) == 1 and best:
        best = [i for i, point in enumerate(known) if point[0] == known[best[0]][0]]
    return [complete[i] for i in best]


def share_interval(evaluation: Evaluation, objective: str) -> tuple[float, float] | None:
    """Return the 95 % interval (low, high) of an evaluation's standing top-1 or agreement, in 0..1.

    None for the other objectives, which are no shares of images, for a score that is none, and where there is no
    value.
    """
    if not METRICS[evaluation.metric].of_images:
        return None
    value = objective_value(evaluation, objective)
    images = evaluation.reported.images
    if objective not in ("top1", "agreement") or value is None or images < 1:
        return None
    return wilson_interval(value, images)


def best_evaluation(
    evaluations: Sequence[Evaluation], *, max_flops: int | None = None, min_top1: float | None = None
) -> Evaluation:
    """Return the evaluation of the highest standing top-1 within the bounds; of equal ones the cheapest.

    Args:
        evaluations: in any order; those that are not done do not count.
        max_flops: the most FLOPs it may cost.
        min_top1: the least standing top-1 in 0..1 that it must have.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    done = [(top1, e) for e in evaluations if (top1 := objective_value(e, "top1")) is not None]
    if not done:
        raise UsageError("no finished evaluation to choose from: run `prunefront search` for this study first")
    affordable = [(top1, e) for top1, e in done if max_flops is None or e.flops <= max_flops]
    if not affordable:
        top1, cheapest = min(done, key=lambda one: (one[1].flops, -one[0]))
        raise UsageError(
            f"no schedule costs at most {max_flops} FLOPs: the cheapest is {_describe(cheapest, top1)}; "
            "raise --max-flops"
        )
    top1, best = min(affordable, key=lambda one: (-one[0], one[1].flops))
    if min_top1 is not None and top1 < min_top1:
        bound = "" if max_flops is None else f" at no more than {max_flops} FLOPs"
        label = METRICS[best.metric].label
        raise UsageError(
            f"no schedule has a {label} of at least {min_top1:g}{bound}: the best is {_describe(best, top1)}; "
            "lower --min-top1"
        )
    return best


def _describe(evaluation: Evaluation, top1: float) -> str:
    label = METRICS[evaluation.metric].label
    return (
        f"{evaluation.schedule.text or 'the dense model'} "
        f"({evaluation.flops} FLOPs, {evaluation.flops_ratio:.3f} of dense, {label} {top1:.4f})"
    )
