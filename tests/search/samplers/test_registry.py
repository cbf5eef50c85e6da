"""What all samplers have in common: proposals depend on the seed and on what is recorded, and on nothing else."""

import json
import warnings

import pytest

from results import Evaluation
from search.config import SAMPLERS
from search.samplers.base import Sampler
from search.samplers.registry import make_sampler
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
            agreement=fakes.top1(schedule),
            latency_ratio=0.2 + 0.8 * fakes.flops(schedule) / 588_000,
            images=300,
            parameters=draw.values,
            sampler_state=sampler.state(draw),
        )
        sampler.tell(draw, evaluation)
        evaluations.append(evaluation)
    return evaluations


def make(name: str, recorded: int = 0, seed: int = 0, trials: int = 40) -> Sampler:
    return make_sampler(name, SPACE, ("top1", "flops"), seed=seed, trials=trials, recorded=recorded)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seed_proposes_the_same(name: str) -> None:
    one = [e.parameters for e in evaluate(make(name), 25)]
    assert one == [e.parameters for e in evaluate(make(name), 25)]
    assert one != [e.parameters for e in evaluate(make(name, seed=1), 25)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resume_does_not_repeat_itself(name: str) -> None:
    before = evaluate(make(name), 12)
    resumed = make(name, recorded=12)
    resumed.restore(before)
    old, new = ([json.dumps(e.parameters) for e in found] for found in (before, evaluate(resumed, 12)))
    assert not any(one == other for one, other in zip(old, new, strict=True))
    # Of nsga2's children, resumed or not, one in a while is its parent's copy; the same stream would repeat them all.
    assert len(set(old) & set(new)) <= (2 if name == "nsga2" else 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_said_on_stderr(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(make(name), 20)
    assert capfd.readouterr().err == ""


def test_a_failure_does_not_stop_the_sampler() -> None:
    for name in SAMPLERS:
        sampler = make(name)
        for _ in range(15):
            sampler.tell(sampler.ask(), None)
        assert sampler.ask().values.keys() == SPACE.parameters.keys()


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown sampler 'nsga3': did you mean 'nsga2'"):
        make("nsga3")
