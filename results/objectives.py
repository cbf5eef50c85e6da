"""The objectives that a study can optimise, their values for an evaluation, and the front that they define."""

from collections.abc import Mapping, Sequence
from typing import cast

from results.intervals import wilson_interval
from results.metrics import METRICS
from results.pareto import pareto_front
from results.records import Evaluation
from spaces.errors import UsageError

# By name, whether higher is better.
OBJECTIVES: Mapping[str, bool] = {"top1": True, "flops": False, "loss": False, "agreement": True, "latency": False}


def objective_value(evaluation: Evaluation, objective: str, *, searched: bool = False) -> float | None:
    """Return the value of an objective for an evaluation; None if it has none.

    FLOPs are those of one image. The other objectives come from the reported score, which is the confirmed one if
    there is one. An evaluation that is not done has no value for them: a stopped one saw only some of the images.

    >>> from spaces import PruningSchedule
    >>> evaluation = Evaluation(PruningSchedule.parse("5:0.8"), 3_000_000, 0.9, top1=0.75, loss=0.9)
    >>> objective_value(evaluation, "top1"), objective_value(evaluation, "flops")
    (0.75, 3000000.0)

    Args:
        evaluation: an evaluation in any state.
        objective: a name from `OBJECTIVES`.
        searched: take the search's score, by which fronts are chosen, even if there is a confirmed one.

    Returns:
        Top-1 and agreement in 0..1, FLOPs as a count, loss as the mean cross-entropy in nats, and latency as a share
        of the dense model's.
    """
    if objective == "flops":
        return float(evaluation.flops)
    if evaluation.state != "done":
        return None
    source = evaluation if searched else evaluation.reported
    score: float | None = getattr(source, "latency_ratio" if objective == "latency" else objective)
    return score


def search_front(evaluations: Sequence[Evaluation], objectives: Sequence[str]) -> list[int]:
    """Return the indices of the front, best in the first objective first, by the search's scores alone.

    Confirmed scores never choose it: a front that is chosen again by the scores that are reported would be biased
    upwards a second time (docs/statistics.md).
    """
    points = [[objective_value(e, name, searched=True) for name in objectives] for e in evaluations]
    return objectives_front(points, objectives)


def dominated_points(front: Sequence[Evaluation], objectives: Sequence[str]) -> frozenset[str]:
    """Return the hashes of those points of a front that another one beats by the confirmed scores.

    Points without a confirmed score neither beat others nor are beaten.
    """
    confirmed = [e for e in front if e.confirmed is not None]
    points = [[objective_value(e, name) for name in objectives] for e in confirmed]
    best = {confirmed[i].hash for i in objectives_front(points, objectives)}
    return frozenset(e.hash for e in confirmed if e.hash not in best)


def objectives_front(points: Sequence[Sequence[float | None]], objectives: Sequence[str]) -> list[int]:
    """Return the indices of the best points, best in the first objective first.

    With two or more objectives they are the Pareto front. With one, they are all points that share the best value.

    >>> objectives_front([(0.8, 300), (0.9, 500), (0.7, 400), (None, 100)], ["top1", "flops"])
    [1, 0]
    >>> objectives_front([(0.8,), (0.9,), (0.9,)], ["top1"])
    [1, 2]

    Args:
        points: for each point, its value for each objective; a point with a None is never among the best.
        objectives: names from `OBJECTIVES`.
    """
    complete = [i for i, point in enumerate(points) if None not in point]
    known = [cast(Sequence[float], points[i]) for i in complete]
    best = pareto_front(known, [OBJECTIVES[name] for name in objectives])
    if len(objectives) == 1 and best:
        best = [i for i, point in enumerate(known) if point[0] == known[best[0]][0]]
    return [complete[i] for i in best]


def share_interval(evaluation: Evaluation, objective: str) -> tuple[float, float] | None:
    """Return the 95 % interval (low, high), in 0..1, of the reported top-1 or agreement of an evaluation.

    None for the other objectives and for metrics such as mean IoU, which are not shares of images, and where the
    evaluation has no value.
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
    """Return the evaluation with the highest top-1 in the search within the bounds; if several tie, the cheapest.

    A confirmed score does not choose, so that it stays unbiased; but `min_top1` asks for it where there is one.

    Args:
        evaluations: in any order; those that are not done do not count.
        max_flops: the most FLOPs it may cost, for one image.
        min_top1: the least reported top-1, in 0..1.

    Raises:
        UsageError: no evaluation is within the bounds; the message names the closest.
    """
    done = [(top1, e) for e in evaluations if (top1 := objective_value(e, "top1", searched=True)) is not None]
    if not done:
        raise UsageError("no finished evaluation to choose from: run `prunefront search` for this study first")
    affordable = [(top1, e) for top1, e in done if max_flops is None or e.flops <= max_flops]
    if not affordable:
        _, cheapest = min(done, key=lambda one: (one[1].flops, -one[0]))
        raise UsageError(
            f"no schedule costs at most {max_flops} FLOPs: the cheapest is {_describe(cheapest)}; raise --max-flops"
        )
    good = [(top1, e) for top1, e in affordable if min_top1 is None or (e.reported.top1 or 0.0) >= min_top1]
    if not good:
        bound = "" if max_flops is None else f" at no more than {max_flops} FLOPs"
        best = min((e for _, e in affordable), key=lambda e: (-(e.reported.top1 or 0.0), e.flops))
        raise UsageError(
            f"no schedule has a {METRICS[best.metric].label} of at least {min_top1:g}{bound}: the best is "
            f"{_describe(best)}; lower --min-top1"
        )
    return min(good, key=lambda one: (-one[0], one[1].flops))[1]


def _describe(evaluation: Evaluation) -> str:
    label, top1 = METRICS[evaluation.metric].label, evaluation.reported.top1 or 0.0
    return (
        f"{evaluation.schedule.text or 'the dense model'} "
        f"({evaluation.flops} FLOPs, {evaluation.flops_ratio:.3f} of dense, {label} {top1:.4f})"
    )
