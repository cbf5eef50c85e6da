"""The model-based sampler finds good fronts early, from the trials of a study alone, and in anybody's own loop."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState, create_trial

from results import Evaluation, hypervolume
from search.samplers.base import Sampler
from search.samplers.forecast import MAX_OBSERVATIONS
from search.samplers.gp_sampler import STARTUP, GpSampler
from search.samplers.points import point_in
from search.samplers.registry import make_sampler
from search.samplers.suggest import distributions, suggest_schedule
from spaces import PruningSchedule
from spaces.errors import UnknownNameError, UsageError
from spaces.space import SearchSpace
from tests.search import fakes
from tests.search.samplers.test_registry import SPACE, evaluate

DENSE = fakes.flops(fakes.PruningSchedule())
DIRECTIONS = ["maximize", "minimize"]


def make(objectives: tuple[str, ...] = ("top1", "flops"), *, seed: int = 0, recorded: int = 0) -> Sampler:
    return make_sampler("gp", SPACE, objectives, seed=seed, trials=40, recorded=recorded)


def volume(evaluations: list[Evaluation]) -> float:
    return hypervolume([(e.flops / DENSE, e.top1) for e in evaluations if e.top1 is not None], (1.0, 0.0))


def objective(trial: Trial) -> tuple[float, float]:
    schedule = suggest_schedule(trial, SPACE)
    trial.set_user_attr("images", 300)
    return fakes.top1(schedule), fakes.flops(schedule)


def new_study(seed: int = 0, storage: BaseStorage | None = None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        sampler=GpSampler(SPACE, seed=seed),
        directions=DIRECTIONS,
        storage=storage,
        study_name="own",
        load_if_exists=True,
    )


def texts(study: optuna.Study) -> list[str]:
    return [trial.user_attrs["schedule"] for trial in study.get_trials(deepcopy=False)]


# --- through the driver's adapter -------------------------------------------------------------------------


def test_it_needs_a_fifth_of_the_evaluations_of_chance() -> None:
    for seed in range(3):
        chance = make_sampler("random", SPACE, ("top1", "flops"), seed=seed, trials=150)
        assert volume(evaluate(make(seed=seed), 30)) > volume(evaluate(chance, 150))


def test_proposals_spread_over_the_budget_and_do_not_crowd_at_its_end() -> None:
    shares = []
    for seed in range(3):
        space = fakes.space(budget="0.5:0.7")
        study = optuna.create_study(sampler=GpSampler(space, seed=seed), directions=DIRECTIONS)

        def score(trial: Trial, space: SearchSpace = space) -> tuple[float, float]:
            schedule = suggest_schedule(trial, space)
            trial.set_user_attr("images", 300)
            return fakes.top1(schedule), fakes.flops(schedule)

        study.optimize(score, n_trials=50)
        shares += [trial.values[1] / DENSE for trial in study.trials[10:]]
    fifths = np.histogram(shares, bins=5, range=(0.5, 0.7))[0] / len(shares)
    assert fifths.min() > 0.08 and fifths.max() < 0.35


def test_what_is_under_way_stays_so_when_another_draw_of_it_comes_to_nothing() -> None:
    """It is still imagined, and so not proposed: the sampler goes on as if there had been one draw."""
    one, other = make(), make()
    for sampler in (one, other):
        evaluate(sampler, STARTUP)
    first, alone = one.ask(), other.ask()
    assert first.values == alone.values
    again = one.ask(first.values)
    one.tell(first, None)
    assert one.ask().values == other.ask().values
    assert again.values == first.values


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


def test_long_histories_are_learned_from() -> None:
    count = MAX_OBSERVATIONS + 100
    known = evaluate(make_sampler("random", SPACE, ("top1", "flops"), seed=0, trials=count), count)
    sampler = make(recorded=len(known))
    sampler.restore(known)
    found = evaluate(sampler, 5)
    assert volume([*known, *found]) > volume(known)


# --- in anybody's own loop --------------------------------------------------------------------------------


def test_it_drives_study_optimize() -> None:
    study = new_study()
    study.optimize(objective, n_trials=25)
    schedules = [PruningSchedule.parse(text) for text in texts(study)]
    assert len(set(schedules)) == 25
    assert all(fakes.flops(schedule) <= SPACE.limit for schedule in schedules)
    points = [(fakes.flops(schedule) / DENSE, fakes.top1(schedule)) for schedule in schedules]
    chance = evaluate(make_sampler("random", SPACE, ("top1", "flops"), seed=0, trials=100), 100)
    assert hypervolume(points, (1.0, 0.0)) > volume(chance)


def test_ask_and_tell_and_optimize_propose_the_same() -> None:
    one, other = new_study(), new_study()
    one.optimize(objective, n_trials=12)
    for _ in range(12):
        trial = other.ask(distributions(SPACE))
        other.tell(trial, objective(trial))
    assert texts(one) == texts(other)


def test_the_driver_s_adapter_and_an_own_loop_propose_the_same() -> None:
    study = new_study()
    study.sampler = GpSampler(SPACE, seed=[5, 0])
    study.optimize(objective, n_trials=12)
    assert texts(study) == [e.schedule.text for e in evaluate(make(seed=5), 12)]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**40))
def test_the_same_seed_and_results_give_the_same_proposals(seed: int) -> None:
    one, other = new_study(seed), new_study(seed)
    one.optimize(objective, n_trials=9)
    other.optimize(objective, n_trials=9)
    assert texts(one) == texts(other)
    assert new_study(seed + 1).ask(distributions(SPACE)).params != one.trials[0].params


def test_threads_propose_different_schedules() -> None:
    study = new_study()
    study.optimize(objective, n_trials=24, n_jobs=4)
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)
    assert len(set(texts(study))) == 24


@pytest.mark.parametrize(
    "storage",
    [
        lambda folder: RDBStorage(f"sqlite:///{folder / 'study.db'}"),
        lambda folder: JournalStorage(JournalFileBackend(str(folder / "study.log"))),
    ],
    ids=["RDB", "journal"],
)
def test_a_storage_is_resumed_by_a_new_sampler(storage: Callable[[Path], BaseStorage], tmp_path: Path) -> None:
    new_study(storage=storage(tmp_path)).optimize(objective, n_trials=10)
    new_study(storage=storage(tmp_path)).optimize(objective, n_trials=5)  # the same seed, and no schedule again
    resumed = new_study(storage=storage(tmp_path))
    assert len(set(texts(resumed))) == len(resumed.trials) == 15
    in_memory = new_study()
    in_memory.add_trials(resumed.trials)
    params = [study.ask(distributions(SPACE)).params for study in (resumed, in_memory)]
    assert params[0] == params[1]  # what the storage holds is all that counts


def test_two_samplers_on_one_storage_know_of_each_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    new_study(storage=RDBStorage(url)).optimize(objective, n_trials=STARTUP + 1)
    studies = [new_study(seed=0, storage=RDBStorage(url)) for _ in range(2)]
    asked = [SPACE.schedule(study.ask(distributions(SPACE)).params) for study in studies * 3]
    assert len(set(asked)) == 6


def test_foreign_trials_never_stop_it() -> None:
    study = new_study()
    study.enqueue_trial({"after_1": 3})
    study.enqueue_trial({"after_1": 3, "unknown": 1.0})
    study.add_trials(
        [
            create_trial(values=[0.9, 1.0]),
            create_trial(values=[float("inf"), 1.0], user_attrs={"schedule": "3:0.5"}),
            create_trial(values=[0.9, 1.0], user_attrs={"schedule": ["nonsense"], "images": "many"}),
            create_trial(values=[0.9, 1.0], params={"lr": 0.1}, distributions={"lr": FloatDistribution(0, 1)}),
            create_trial(state=TrialState.FAIL),
        ]
    )

    def failing(trial: Trial) -> tuple[float, float]:
        trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        if trial.number % 5 == 3:
            raise optuna.TrialPruned
        if trial.number % 5 == 4:
            return float("nan"), 0.0
        return objective(trial)

    study.optimize(failing, n_trials=25)
    assert study.trials[0].params["after_1"] == study.trials[1].params["after_1"] == 3
    assert sum(trial.state is TrialState.COMPLETE for trial in study.trials[7:]) >= 12


def test_parameters_that_were_given_are_pending_and_not_proposed() -> None:
    study = new_study()
    study.optimize(objective, n_trials=STARTUP + 1)
    proposed = study.ask(distributions(SPACE)).params
    other = new_study()
    other.optimize(objective, n_trials=STARTUP + 1)
    other.enqueue_trial(proposed)
    assert other.ask(distributions(SPACE)).params == proposed
    assert SPACE.schedule(other.ask(distributions(SPACE)).params) != SPACE.schedule(proposed)


def test_a_narrow_space_ends_in_repetition_and_not_in_an_error() -> None:
    space = fakes.small_space()
    study = optuna.create_study(sampler=GpSampler(space, seed=0), directions=DIRECTIONS)

    def measured(trial: Trial) -> tuple[float, float]:
        schedule = suggest_schedule(trial, space)
        return fakes.top1(schedule), fakes.flops(schedule)

    study.optimize(measured, n_trials=20)
    assert len(set(texts(study)[:11])) == 11
    assert len(set(texts(study))) == 12


def test_one_sampler_may_serve_several_studies() -> None:
    alone, sampler = new_study(), GpSampler(SPACE, seed=0)
    alone.optimize(objective, n_trials=9)
    for _ in range(2):
        study = optuna.create_study(sampler=sampler, directions=DIRECTIONS)
        study.optimize(objective, n_trials=9)
        assert len(set(texts(study))) == 9
    assert texts(alone) != texts(study)


def test_a_pickled_study_goes_on() -> None:
    study = new_study()
    study.optimize(objective, n_trials=STARTUP + 2)
    copies: list[Any] = [pickle.loads(pickle.dumps(study)) for _ in range(2)]
    for copy in copies:
        copy.optimize(objective, n_trials=3)
    assert texts(copies[0]) == texts(copies[1])
    assert len(set(texts(copies[0]))) == STARTUP + 5


@pytest.mark.parametrize(
    ("objectives", "directions"),
    [(("top1", "flops"), ["minimize", "minimize"]), (("top1", "flops"), ["maximize"]), (("loss",), ["maximize"])],
)
def test_directions_that_disagree_are_refused(objectives: tuple[str, ...], directions: list[Any]) -> None:
    study = optuna.create_study(sampler=GpSampler(SPACE, objectives), directions=directions)
    with pytest.raises(UsageError, match="create the study with directions=") as error:
        study.optimize(objective, n_trials=1)
    assert "\n" not in str(error.value)


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown objective 'top2'"):
        GpSampler(SPACE, ("top2",))


@given(st.dictionaries(st.sampled_from(list(SPACE.parameters)), st.floats() | st.text() | st.booleans() | st.none()))
def test_only_values_within_the_space_are_a_point_of_it(values: dict[str, Any]) -> None:
    point = {"after_1": 1, "weight_1": 0.0, "after_2": 2, "weight_2": 0.5, "after_3": 3, "weight_3": 1.0}
    point |= {"target": 0.5, "context": "drop"}
    found = point_in(point | values, SPACE.parameters)
    assert found is None or (found == point | values and SPACE.schedule(found))
