"""A trial's parameters are a schedule of the space."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search.samplers.suggest import SCHEDULE_ATTR, directions, distributions, suggest_schedule
from spaces import PruningSchedule
from tests.search import fakes


def test_a_space_has_a_distribution_for_each_parameter() -> None:
    space = fakes.space("stages:1")
    assert distributions(space) == {
        "after_1": IntDistribution(1, 11),
        "weight_1": FloatDistribution(0.0, 1.0),
        "target": FloatDistribution(0.0, 1.0),
        "context": CategoricalDistribution(("drop", "conv", "freeze")),
    }


def test_directions_follow_the_objectives() -> None:
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    assert directions(("agreement", "loss", "latency")) == study.directions


@pytest.mark.parametrize("text", ["stages:2", "per-block", "stages:2;context=each:drop,freeze"])
def test_a_suggested_schedule_is_within_the_budget_and_can_be_read_from_its_trial(text: str) -> None:
    space = fakes.space(text)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        schedule = suggest_schedule(trial, space)
        assert fakes.flops(schedule) <= space.limit
        assert PruningSchedule.parse(trial.user_attrs[SCHEDULE_ATTR]) == schedule
        assert suggest_schedule(FixedTrial(trial.params), space) == schedule
        assert trial.distributions == distributions(space)
