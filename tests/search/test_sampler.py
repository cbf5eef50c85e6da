"""Proposals depend on the seed and on what is recorded, and on nothing else."""

import json
import warnings
from dataclasses import replace

import pytest

from results import Evaluation
from search.sampler import Sampler, population_size
from spaces.errors import UnknownNameError
from tests.search import fakes

SPACE = fakes.space()


def evaluate(sampler: Sampler, count: int) -> list[Evaluation]:
    """Ask and tell `count` times; return what a store would keep."""
    evaluations = []
    for _ in range(count):
        draw = sampler.ask()
        schedule = SPACE.schedule(draw.values)
        evaluation = Evaluation(
            schedule,
            flops=fakes.flops(schedule),
            flops_ratio=0.5,
            top1=fakes.top1(schedule),
            loss=0.1,
            parameters=draw.values,
            sampler_state=sampler.state(draw),
        )
        sampler.tell(draw, evaluation)
        evaluations.append(evaluation)
    return evaluations


def make(name: str, recorded: int = 0, seed: int = 0, trials: int = 40) -> Sampler:
    return Sampler(name, SPACE, ("top1", "flops"), seed=seed, trials=trials, recorded=recorded)


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_the_same_seed_proposes_the_same(name: str) -> None:
    one = [e.parameters for e in evaluate(make(name), 25)]
    assert one == [e.parameters for e in evaluate(make(name), 25)]
    assert one != [e.parameters for e in evaluate(make(name, seed=1), 25)]


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_a_resume_does_not_repeat_itself(name: str) -> None:
    before = evaluate(make(name), 12)
    resumed = make(name, recorded=12)
    resumed.restore(before)
    old, new = ([json.dumps(e.parameters) for e in found] for found in (before, evaluate(resumed, 12)))
    assert not any(one == other for one, other in zip(old, new, strict=True))
    # Of nsga2's children, resumed or not, one in a while is its parent's copy; the same stream would repeat them all.
    assert len(set(old) & set(new)) <= (2 if name == "nsga2" else 0)


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_nothing_is_said_on_stderr(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(make(name), 20)
    assert capfd.readouterr().err == ""


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


def test_a_failure_does_not_stop_the_sampler() -> None:
    for name in ("nsga2", "tpe", "random"):
        sampler = make(name)
        for _ in range(15):
            sampler.tell(sampler.ask(), None)
        assert sampler.ask().values.keys() == SPACE.parameters.keys()


def test_points_outside_the_space_are_left_out() -> None:
    sampler = make("tpe")
    known = evaluate(make("tpe"), 3)
    sampler.restore([replace(known[0], parameters={}), replace(known[1], parameters={"other": 1.0})])
    assert evaluate(sampler, 1)


def test_the_population_suits_few_trials() -> None:
    assert [population_size(n) for n in (5, 40, 100, 1000)] == [4, 8, 20, 50]


def test_nsga2_beats_chance() -> None:
    """On the fake objective the best of 80 proposals is better than the best of 80 random ones."""

    def score(evaluations: list[Evaluation]) -> float:
        return sorted(e.top1 - e.flops / 588_000 for e in evaluations if e.top1)[-10]

    def run(name: str, seed: int) -> float:
        return score(evaluate(make(name, seed=seed, trials=80), 80))

    assert sum(run("nsga2", seed) > run("random", seed) for seed in range(5)) >= 4


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown sampler 'nsga3': did you mean 'nsga2'"):
        make("nsga3")
