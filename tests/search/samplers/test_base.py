"""What a sampler is told of an evaluation."""

from dataclasses import replace

import pytest

from results import Evaluation
from search.samplers.base import scores
from spaces import PruningSchedule

DONE = Evaluation(
    PruningSchedule.parse("3:0.5"),
    flops=300,
    flops_ratio=0.6,
    top1=0.9,
    loss=0.2,
    agreement=0.8,
    images=100,
    latency_ratio=0.7,
)


def test_scores_stand_in_the_order_of_the_objectives() -> None:
    assert scores(DONE, ("top1", "flops")) == [0.9, 300.0]
    assert scores(DONE, ("latency", "agreement", "loss")) == [0.7, 0.8, 0.2]


def test_what_lacks_an_objective_has_no_scores() -> None:
    assert scores(replace(DONE, latency_ratio=None), ("top1", "latency")) is None
    assert scores(replace(DONE, state="failed"), ("top1", "flops")) is None


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (("top1", "flops"), [0.55, 300.0]),
        (("flops", "agreement"), [300.0, 0.55]),
        (("top1", "agreement"), [0.55, 0.8]),
    ],
)
def test_a_stopped_one_counts_with_its_estimate(objectives: tuple[str, ...], expected: list[float]) -> None:
    stopped = replace(DONE, state="stopped", images=30, estimate=0.55)
    assert scores(stopped, objectives) == expected
    assert scores(replace(stopped, estimate=None), objectives) is None
