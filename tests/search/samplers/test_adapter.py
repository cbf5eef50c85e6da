"""One study of Optuna behind each sampler: what is restored into it, and what Optuna's samplers make of it."""

import json
from dataclasses import replace

import pytest

from results import Evaluation
from search.config import SAMPLERS
from search.samplers.registry import population_size
from tests.search.samplers.test_registry import SPACE, evaluate, make


def test_generations_go_on_after_a_resume() -> None:
    before = evaluate(make("nsga2"), 20)  # a population of 8: generations 0, 1 and half of 2
    generations = [next(iter(e.sampler_state.values())) for e in before]
    assert generations == [0] * 8 + [1] * 8 + [2] * 4
    resumed = make("nsga2", recorded=20)
    resumed.restore([replace(e, sampler_state=json.loads(json.dumps(e.sampler_state))) for e in before])
    after = [next(iter(e.sampler_state.values())) for e in evaluate(resumed, 8)]
    assert after == [2] * 4 + [3] * 4


def test_a_given_point_joins_the_generation_and_breeds() -> None:
    sampler = make("nsga2", trials=20)
    best = {"after_1": 11, "weight_1": 1.0, "after_2": 11, "weight_2": 0.0, "after_3": 11, "weight_3": 0.0}
    draw = sampler.ask({**best, "target": 1.0 + 1e-12, "context": "freeze"})
    assert draw.values["target"] == 1.0  # back within its bounds
    assert draw.values["after_1"] == 11
    assert list(sampler.state(draw).values()) == [0]


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_optuna_s_samplers_learn_nothing_from_schedules_outside_the_space(name: str) -> None:
    sampler, untaught = make(name), make(name)
    known = evaluate(make(name), 3)
    changed = ({}, {"other": 1.0}, {**known[2].parameters, "target": 7.0, "context": "unknown"})
    sampler.restore([replace(e, parameters=values) for e, values in zip(known, changed, strict=True)])
    assert [e.parameters for e in evaluate(sampler, 12)] == [e.parameters for e in evaluate(untaught, 12)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_recorded_value_may_lie_a_rounding_error_outside_its_bounds(name: str) -> None:
    sampler, exact = make(name, recorded=12), make(name, recorded=12)
    known = [replace(e, parameters={**e.parameters, "target": 1.0}) for e in evaluate(make(name), 12)]
    exact.restore(known)
    sampler.restore([replace(e, parameters={**e.parameters, "target": 1.0 + 1e-12}) for e in known])
    assert [e.parameters for e in evaluate(sampler, 4)] == [e.parameters for e in evaluate(exact, 4)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_values_are_proposed_as_they_are(name: str) -> None:
    sampler = make(name)
    given = evaluate(make("random", seed=9), 1)[0].parameters
    draw = sampler.ask(given)
    assert draw.values == given and list(draw.values) == list(SPACE.parameters)


def test_the_population_suits_few_trials() -> None:
    assert [population_size(n) for n in (5, 40, 100, 1000)] == [4, 8, 20, 50]


def test_nsga2_beats_chance() -> None:
    """On the fake objective the best of 80 proposals is better than the best of 80 random ones."""

    def score(evaluations: list[Evaluation]) -> float:
        return sorted(e.top1 - e.flops / 588_000 for e in evaluations if e.top1)[-10]

    def run(name: str, seed: int) -> float:
        return score(evaluate(make(name, seed=seed, trials=80), 80))

    assert sum(run("nsga2", seed) > run("random", seed) for seed in range(5)) >= 4


def test_tpe_tries_the_whole_range_of_the_budget() -> None:
    for seed in range(3):
        costs = [e.flops for e in evaluate(make("tpe", seed=seed, trials=60), 60)][20:]
        span = SPACE.limit - SPACE.least
        assert sum(cost < SPACE.least + 0.3 * span for cost in costs) >= 4
        assert sum(cost > SPACE.limit - 0.3 * span for cost in costs) >= 4
