"""The objectives of an evaluation, and the best of several evaluations."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import Confirmation, Evaluation, pareto_front
from results.objectives import OBJECTIVES, best_evaluation, objective_value, objectives_front
from spaces.errors import UsageError

MakeEvaluation = Callable[..., Evaluation]
SCORES = ("top1", "loss", "agreement")


def test_objective_values_come_from_the_reported_score(make_evaluation: MakeEvaluation) -> None:
    searched = make_evaluation(latency_ms=5.0, latency_ratio=0.6)
    values = {name: objective_value(searched, name) for name in OBJECTIVES}
    assert values == {"top1": 0.9, "flops": 700_000.0, "loss": 0.3, "agreement": 0.95, "latency": 0.6}
    confirmed = replace(searched, confirmed=Confirmation(searched.hash, 0.8, 0.5, 0.85, 5000, 1.0, 1.0, 0.8))
    values = {name: objective_value(confirmed, name) for name in OBJECTIVES}
    assert values == {"top1": 0.8, "flops": 700_000.0, "loss": 0.5, "agreement": 0.85, "latency": 0.8}


@pytest.mark.parametrize("changes", [{"state": "stopped", "estimate": 0.7}, {"state": "failed", "failure": "OOM"}])
def test_an_unfinished_evaluation_has_no_score(make_evaluation: MakeEvaluation, changes: dict[str, object]) -> None:
    evaluation = make_evaluation(**changes)
    assert [objective_value(evaluation, name) for name in SCORES] == [None] * 3
    assert objective_value(evaluation, "flops") == 700_000


@given(
    st.lists(st.sampled_from(list(OBJECTIVES)), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.tuples(
            st.just(names), st.lists(st.tuples(*[st.none() | st.integers(0, 4).map(float)] * len(names)), max_size=20)
        )
    )
)
def test_the_best_points_are_the_front_of_complete_points(
    problem: tuple[list[str], list[tuple[float | None, ...]]],
) -> None:
    names, points = problem
    best = objectives_front(points, names)
    complete = [p for p in points if None not in p]
    front = pareto_front([[x for x in p if x is not None] for p in complete], [OBJECTIVES[name] for name in names])
    assert {points[i] for i in best} == {complete[i] for i in front}
    if len(names) == 1:
        assert all((p == points[best[0]]) == (i in best) for i, p in enumerate(points) if best), "all that tie"
    else:
        assert len(best) == len(front)


def confirmed(evaluation: Evaluation, top1: float) -> Evaluation:
    return replace(evaluation, confirmed=Confirmation(evaluation.hash, top1, 0.5, 0.9, 5000, 1.0, 1.0, 0.8))


def test_the_best_evaluation_within_the_bounds(make_evaluation: MakeEvaluation) -> None:
    cheap, middle, dear = (
        make_evaluation(f"{i}:0.5", flops=flops, top1=top1)
        for i, (flops, top1) in enumerate([(400, 0.7), (500, 0.9), (600, 0.95)], start=1)
    )
    tie = make_evaluation("4:0.5", flops=550, top1=0.95)
    failed = make_evaluation("5:0.5", flops=1, top1=None, state="failed", failure="OOM")
    front = [dear, failed, cheap, middle]
    assert best_evaluation(front) is dear
    assert best_evaluation(front, max_flops=599) is middle
    assert best_evaluation(front, max_flops=600, min_top1=0.95) is dear
    assert best_evaluation([*front, tie]) is tie, "the cheapest of several with the same top-1"
    stopped = make_evaluation("6:0.5", flops=300, top1=0.99, state="stopped")
    lucky = confirmed(make_evaluation("7:0.5", flops=300, top1=0.99), 0.94)
    assert best_evaluation([*front, stopped, lucky]) is lucky, "the search's scores choose, not the confirmed ones"
    assert best_evaluation([*front, stopped, lucky], min_top1=0.95) is dear, "a bound asks for the confirmed score"
    with pytest.raises(UsageError, match=r"the best is 7:0.5 .*top-1 0.9400"):
        best_evaluation([lucky], min_top1=0.95)


def test_bounds_that_nothing_meets_name_the_closest_schedule(make_evaluation: MakeEvaluation) -> None:
    front = [make_evaluation("1:0.5", flops=400, top1=0.7), make_evaluation("2:0.5", flops=500, top1=0.9)]
    with pytest.raises(UsageError, match=r"costs at most 399 FLOPs: the cheapest is 1:0.5 \(400 FLOPs"):
        best_evaluation(front, max_flops=399)
    with pytest.raises(UsageError, match=r"top-1 of at least 0.95: the best is 2:0.5 .*top-1 0.9000"):
        best_evaluation(front, min_top1=0.95)
    with pytest.raises(UsageError, match=r"at least 0.8 at no more than 450 FLOPs: the best is 1:0.5"):
        best_evaluation(front, max_flops=450, min_top1=0.8)
    with pytest.raises(UsageError, match="no finished evaluation"):
        best_evaluation([])
