"""The model-based sampler finds good fronts early, and what it proposes depends on what it was told."""

from dataclasses import replace

import pytest

from results import Evaluation, hypervolume
from search.samplers.gp_sampler import MOST, STARTUP, GpSampler
from search.samplers.registry import make_sampler
from tests.search import fakes
from tests.search.samplers.test_registry import SPACE, evaluate

DENSE = fakes.flops(fakes.PruningSchedule())


def make(objectives: tuple[str, ...] = ("top1", "flops"), *, seed: int = 0, recorded: int = 0) -> GpSampler:
    sampler = make_sampler("gp", SPACE, objectives, seed=seed, trials=40, recorded=recorded)
    assert isinstance(sampler, GpSampler)
    return sampler


def volume(evaluations: list[Evaluation]) -> float:
    return hypervolume([(e.flops / DENSE, e.top1) for e in evaluations if e.top1 is not None], (1.0, 0.0))


def test_it_needs_a_fifth_of_the_evaluations_of_chance() -> None:
    for seed in range(3):
        chance = make_sampler("random", SPACE, ("top1", "flops"), seed=seed, trials=150)
        assert volume(evaluate(make(seed=seed), 30)) > volume(evaluate(chance, 150))


def test_what_is_under_way_stays_so_when_another_draw_of_it_comes_to_nothing() -> None:
    sampler = make()
    evaluate(sampler, STARTUP)
    first = sampler.ask()
    second = sampler.ask(first.values)
    third = sampler.ask(first.values)
    for draw in (first, second):
        sampler.tell(draw, None)
    assert list(sampler._pending.values()) == [third.mark]


def test_nothing_is_proposed_twice_though_nothing_is_told() -> None:
    sampler = make()
    evaluate(sampler, STARTUP + 2)
    schedules = [SPACE.schedule(sampler.ask().values) for _ in range(12)]
    assert len(set(schedules)) == 12
    costs = sorted(fakes.flops(schedule) / DENSE for schedule in schedules)
    assert costs[-1] - costs[0] > 0.05  # what is under way is taken to come true, so the next lies elsewhere


def test_what_failed_or_is_known_is_not_proposed_again() -> None:
    sampler = make()
    evaluate(sampler, STARTUP)
    first = sampler.ask()
    sampler.tell(first, None)
    later = evaluate(sampler, 15)
    assert SPACE.schedule(first.values) not in {e.schedule for e in later}
    assert len({e.schedule for e in later}) == 15


def test_what_is_recorded_is_all_that_is_needed() -> None:
    before = evaluate(make(), 25)
    one, other = make(recorded=25), make(recorded=25)
    one.restore(before)
    other.restore(before)
    assert one.state(one.ask()) == {}
    assert one.ask().values == [other.ask(), other.ask()][1].values
    resumed = make(recorded=25)
    resumed.restore(before)
    assert volume([*before, *evaluate(resumed, 10)]) > volume(before)


def test_schedules_outside_the_space_teach_too() -> None:
    before = [replace(e, parameters={}) for e in evaluate(make(), 20)]
    taught = make(seed=3)
    taught.restore(before)
    found, untaught = evaluate(taught, 6), evaluate(make(seed=3), 6)  # the latter at random
    assert not {e.schedule for e in found} & {e.schedule for e in before}
    assert volume([*before, *found]) > volume([*before, *untaught])


def test_an_estimate_on_few_images_counts_less() -> None:
    """A stopped candidate with an absurd estimate leads the sampler astray less than one that was measured."""
    told = evaluate(make(), 20)
    worst = min(told, key=lambda e: e.top1 or 0.0)
    asked = []
    for images in (2, 300):
        sampler = make(recorded=20)
        changed = replace(worst, state="stopped", estimate=1.0, images=images)
        sampler.restore([changed if e is worst else e for e in told])
        forecast = sampler._forecasts["top1"]
        sampler.ask()
        asked.append(forecast.predict([sampler._results[worst.schedule].candidate])[0][0])
    assert asked[0] < asked[1]


@pytest.mark.parametrize(
    "objectives",
    [
        ("flops", "agreement"),
        ("loss", "flops"),
        ("top1",),
        ("flops",),
        ("top1", "latency"),
        ("top1", "flops", "latency"),
    ],
)
def test_any_objectives(objectives: tuple[str, ...]) -> None:
    evaluations = evaluate(make(objectives), 20)
    assert len({e.schedule for e in evaluations}) >= 18
    if objectives == ("top1",):
        assert max(e.top1 or 0.0 for e in evaluations[STARTUP:]) >= 0.95
    if "top1" in objectives and len(objectives) > 1:
        later = [e.flops for e in evaluations[STARTUP:]]
        assert max(later) - min(later) > 0.1 * DENSE  # the whole front is sought, and not one end


def test_long_histories_are_thinned_out() -> None:
    known = evaluate(make_sampler("random", SPACE, ("top1", "flops"), seed=0, trials=MOST + 100), MOST + 100)
    sampler = make(recorded=len(known))
    sampler.restore(known)
    found = evaluate(sampler, 5)
    assert volume([*known, *found]) > volume(known)
