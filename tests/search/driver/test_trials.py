"""The trials in flight: slots, time limits, and what runs again after a worker died."""

import pytest

from search.driver.proposer import Candidate
from search.driver.trials import InFlightTrial, Timeouts, Trials
from spaces import PruningSchedule
from tests.search import fakes


def candidate(number: int) -> Candidate:
    schedule = PruningSchedule.of([(1 + number, 0.5)])
    return Candidate(schedule, fakes.flops(schedule), "random", None)


def test_a_trial_takes_the_slot_that_has_been_free_the_longest() -> None:
    """Its overhead counts from then, for each of its candidates."""
    now = [0.0]
    trials = Trials(Timeouts(), clock=lambda: now[0])
    for name in "ab":
        trials.start(name, InFlightTrial([candidate(0), candidate(1)]))
    for name, seconds in (("b", 10.0), ("a", 14.0)):
        now[0] = seconds
        trial = trials.finish(name)
        assert trial is not None
        trials.account(trial, forward_seconds=6.0)
        trials.free_slot()
    now[0] = 20.0
    trials.start("c", InFlightTrial([candidate(2)]))
    trial = trials.finish("c")
    assert trial is not None
    assert trial.since == 10.0
    trials.account(trial, forward_seconds=1.0)
    assert trials.overheads == [2.0, 2.0, 4.0, 4.0, 9.0]
    assert trials.forwards == [3.0, 3.0, 3.0, 3.0, 1.0]
    assert trials.finish("c") is None


def test_a_group_has_the_time_of_its_candidates_and_a_confirmation_its_own() -> None:
    trials = Trials(Timeouts(candidate=10.0, confirmation=70.0))
    trials.start("group", InFlightTrial([candidate(0), candidate(1), candidate(2)]))
    assert trials.searching
    assert trials.time_limit("group") == 30.0
    trials.finish("group")
    trials.start("confirmation", InFlightTrial(confirming=PruningSchedule()))
    assert (trials.running, trials.searching) == (True, False)
    assert trials.time_limit("confirmation") == 70.0
    assert trials.time_limit("another") is None


@pytest.mark.parametrize(("timed_out", "kind"), [(False, "KILLED"), (True, "TIMEOUT")])
def test_a_candidate_whose_worker_died_runs_once_more_alone(timed_out: bool, kind: str) -> None:
    trials = Trials(Timeouts(candidate=10.0))
    trials.start("a", InFlightTrial([candidate(0), candidate(1)]))
    first = trials.finish("a")
    assert first is not None
    assert trials.failure(first, first.group[0]) is None
    trials.repeat(first.group[0])
    assert [one.schedule for one in trials.candidates()] == [candidate(0).schedule]  # it is still under way
    again = trials.next_repeat()
    assert again is not None
    assert (len(again.group), trials.next_repeat()) == (1, None)
    trials.start("b", again)
    if timed_out:
        trials.time_out("b")
    second = trials.finish("b")
    assert second is not None
    failure = trials.failure(second, second.group[0])
    assert failure is not None
    assert (failure.kind, failure.seconds) == (kind, None)


def test_a_confirmation_whose_worker_died_runs_once_more() -> None:
    trials = Trials(Timeouts())
    assert trials.repeat_confirmation(InFlightTrial(confirming=PruningSchedule(), timed_out=True))
    again = trials.next_repeat()
    assert again is not None
    assert (again.deaths, again.timed_out) == (1, False)
    assert not trials.repeat_confirmation(again)
