"""An evaluation's values of the objectives, and the best of several evaluations."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import Confirmation, Evaluation, pareto_front
from results.objectives import OBJECTIVES, objective_value, objectives_front

MakeEvaluation = Callable[..., Evaluation]
SCORES = ("top1", "loss", "agreement")


def test_the_values_of_an_evaluation(make_evaluation: MakeEvaluation) -> None:
    searched = make_evaluation(latency_ms=5.0, latency_ratio=0.6)
    values = {name: objective_value(searched, name) for name in OBJECTIVES}
    assert values == {"top1": 0.9, "flops": 700_000.0, "loss": 0.3, "agreement": 0.95, "latency": 0.6}
    confirmed = replace(searched, confirmed=Confirmation(searched.hash, 0.8, 0.5, 0.85, 5000, 1.0, 1.0, 0.8))
    values = {name: objective_value(confirmed, name) for name in OBJECTIVES}
    assert values == {"top1": 0.8, "flops": 700_000.0, "loss": 0.5, "agreement": 0.85, "latency": 0.8}


@pytest.mark.parametrize("changes", [{"state": "stopped", "estimate": 0.7}, {"state": "failed", "failure": "OOM"}])
def test_what_is_not_done_has_no_score(make_evaluation: MakeEvaluation, changes: dict[str, object]) -> None:
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
def test_the_best_are_the_front_of_what_is_complete(
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
