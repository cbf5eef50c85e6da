"""The cost of a search."""

from dataclasses import replace
from datetime import timedelta

import pytest

from results import Evaluation
from results.report.cost import SearchCost
from tests.results.shown import EVIL, NOW, MakeEvaluation


def test_the_cost_adds_up(evaluations: list[Evaluation]) -> None:
    cost = SearchCost.of(evaluations)
    assert (cost.evaluations, cost.seconds, cost.median) == (13, 6.5, 0.5)
    assert cost.failures == [("OOM", 1, EVIL)]
    assert cost.origins == [("nsga2", 13)]
    assert cost.stopped == 0
    stopped = replace(evaluations[0], state="stopped", seconds=0.1)
    assert (SearchCost.of([*evaluations, stopped]).stopped, SearchCost.of([stopped]).median) == (1, None)


def test_cpu_time_images_and_rate(make_evaluation: MakeEvaluation) -> None:
    times = [NOW + timedelta(seconds=s) for s in (0, 10, 20, 20_000, 20_010)]  # with a pause overnight
    ran = [make_evaluation(f"{i + 1}:0.5", finished_at=time, number=i) for i, time in enumerate(times)]
    ran[1] = replace(ran[1], state="stopped", images=250)
    cost = SearchCost.of(ran, images=1000, cpus=4)
    assert (cost.cpu_seconds, cost.images, cost.saved) == (10.0, 4250, 0.15)
    assert cost.per_hour == pytest.approx(360)
    assert (SearchCost.of([]).per_hour, SearchCost.of([]).saved) == (None, 0.0)
