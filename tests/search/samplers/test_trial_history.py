"""What the trials of a study teach, and which of them teach nothing."""

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.samplers.suggest import distributions
from search.samplers.surrogate import Features
from search.samplers.trial_history import EncodedSchedule, Observation, TrialHistory
from spaces import PruningSchedule
from tests.search import fakes

SPACE = fakes.space("stages:1")
DISTRIBUTIONS = distributions(SPACE)
POINT = {"after_1": 5, "weight_1": 1.0, "target": 0.5, "context": "conv"}
SCHEDULE = SPACE.schedule(POINT)


def history() -> TrialHistory:
    return TrialHistory(SPACE, Features(SPACE.layout, SPACE.choices), ("top1", "flops"))


def study(*trials: FrozenTrial) -> optuna.Study:
    found = optuna.create_study(directions=["maximize", "minimize"])
    found.add_trials(trials)
    return found


def trial(values: list[float] | None = None, params: dict[str, Any] | None = None, **changes: Any) -> FrozenTrial:
    params = POINT if params is None else params
    known = {name: DISTRIBUTIONS.get(name, FloatDistribution(-1e9, 1e9)) for name in params}
    return create_trial(values=values or [0.9, 1.0], params=params, distributions=known, **changes)


def learned(*trials: FrozenTrial) -> TrialHistory:
    found = history()
    found.update(study(*trials))
    return found


def test_flops_are_the_space_s_own_count() -> None:
    found = learned(trial([0.9, 123.0]))
    share = fakes.flops(SCHEDULE) / SPACE.dense_flops
    assert found.observations[SCHEDULE].scores == (0.9, -share)
    assert found.observations[SCHEDULE].images is None


def test_a_trial_says_on_how_many_images_it_was_measured() -> None:
    assert learned(trial(user_attrs={"images": 300})).observations[SCHEDULE].images == 300
    for nonsense in ("many", -1, 0, True, None, float("inf")):
        assert learned(trial(user_attrs={"images": nonsense})).observations[SCHEDULE].images is None


@pytest.mark.parametrize(
    "foreign",
    [
        trial(params={}),
        trial(params={"after_1": 5}),
        trial(params={"lr": 0.1}),
        trial(user_attrs={"schedule": "5:0.5:nonsense"}),
        trial(user_attrs={"schedule": "13:0.5"}),
        trial(params={}, user_attrs={"schedule": 5}),
        create_trial(
            values=[0.9, 1.0],
            params={**POINT, "target": 7.0},
            distributions={**DISTRIBUTIONS, "target": FloatDistribution(0, 9)},
        ),
    ],
    ids=["no parameters", "some", "others", "no schedule", "too deep", "no text", "out of bounds"],
)
def test_foreign_trials_are_ignored(foreign: FrozenTrial) -> None:
    found = learned(foreign, trial())
    assert list(found.observations) == [SCHEDULE]
    assert found.closed == {SCHEDULE}


def test_other_parameters_beside_those_of_the_space_do_no_harm() -> None:
    assert list(learned(trial(params={**POINT, "lr": 0.1})).observations) == [SCHEDULE]


def test_a_trial_s_own_schedule_comes_before_its_parameters() -> None:
    text = "3:0.5,7:0.5;context=freeze"  # two steps, which this space does not have
    for params in ({}, POINT):
        found = learned(trial(params=params, user_attrs={"schedule": text}))
        assert list(found.observations) == [PruningSchedule.parse(text)]


@pytest.mark.parametrize(
    "told",
    [
        create_trial(state=TrialState.FAIL, params=POINT, distributions=DISTRIBUTIONS),
        create_trial(
            state=TrialState.PRUNED, params=POINT, distributions=DISTRIBUTIONS, intermediate_values={0: 0.9}
        ),
        trial([float("inf"), 1.0]),
    ],
)
def test_what_has_no_result_was_tried_and_teaches_nothing(told: FrozenTrial) -> None:
    found = learned(told)
    assert not found.observations and not found.front
    assert found.closed == {SCHEDULE}


def test_a_running_trial_is_pending_until_it_is_told() -> None:
    found, over = history(), study()
    running = over.ask(DISTRIBUTIONS)
    found.update(over)
    schedule = SPACE.schedule(running.params)
    assert list(found.pending) == [schedule] and not found.closed
    over.tell(running, [0.5, 1.0])
    found.update(over)
    assert not found.pending and list(found.observations) == [schedule]


def test_a_schedule_stays_pending_while_any_of_its_trials_runs() -> None:
    found, over = history(), study()
    for _ in range(3):
        over.enqueue_trial(POINT)
    one, other, last = (over.ask(DISTRIBUTIONS) for _ in range(3))
    over.tell(one, state=TrialState.FAIL)
    over.tell(last, state=TrialState.FAIL)
    found.update(over)
    assert list(found.pending) == [SCHEDULE]
    over.tell(other, state=TrialState.FAIL)
    found.update(over)
    assert not found.pending


def test_what_is_proposed_is_pending_before_its_trial_has_all_parameters() -> None:
    found, over = history(), study()
    running = over.ask({"after_1": DISTRIBUTIONS["after_1"]})
    found.propose(running.number, found.encode(SCHEDULE, dict(POINT)))
    found.update(over)
    assert list(found.pending) == [SCHEDULE]
    over.tell(running, [0.5, 1.0])  # after all it suggested only one of them
    found.update(over)
    assert not found.pending and not found.observations


def test_observations_come_in_the_order_in_which_trials_finished() -> None:
    found, over = history(), study()
    trials = [over.ask(DISTRIBUTIONS) for _ in range(4)]
    schedules = [SPACE.schedule(running.params) for running in trials]
    for i in (2, 0, 3):
        over.tell(trials[i], [0.5, 1.0])
    found.update(over)
    over.tell(trials[1], [0.5, 1.0])
    found.update(over)
    assert list(found.observations) == [schedules[i] for i in (2, 0, 3, 1)]
    again = history()
    again.update(over)
    assert again.observations.keys() == found.observations.keys()


def test_the_front_is_what_nothing_dominates() -> None:
    texts = ["3:0.5", "6:0.5", "9:0.5"]
    found = learned(
        *(trial([v, 0], params={}, user_attrs={"schedule": t}) for t, v in zip(texts, (0.5, 0.4, 0.8), strict=True))
    )
    assert [observation.encoded.schedule.text for observation in found.front] == ["3:0.5", "9:0.5"]


def test_equal_observations_do_not_dominate_each_other() -> None:
    encoded: EncodedSchedule = history().encode(SCHEDULE, None)
    one, other = (Observation(encoded, (0.5, -0.5), images) for images in (100, 200))
    better = Observation(encoded, (0.6, -0.5), None)
    assert not one.dominates(other) and not other.dominates(one)
    assert better.dominates(one) and not one.dominates(better)
