"""Workers whose trial is overdue are killed once; the searcher then knows why they died."""

from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial

from search.driver.searcher import ScheduleSearcher
from search.driver.trials import Timeouts
from search.runtime.watchdog import TrialTimeout
from spaces import PruningSchedule
from tests.search import fakes

TIMEOUTS = Timeouts(candidate=10.0, confirmation=99.0)


class Watched:
    """Plays the trials of a searcher against a clock; `killed` are the actors that were killed."""

    def __init__(self, searching: ScheduleSearcher) -> None:
        self.now = 0.0
        self.killed: list[str] = []
        self.timeout = TrialTimeout(searching.trials, clock=lambda: self.now, kill=self.killed.append)

    def start(self, name: str) -> Trial:
        trial: Any = SimpleNamespace(trial_id=name, temporary_state=SimpleNamespace(ray_actor=f"actor of {name}"))
        self.timeout.on_trial_start(0, [], trial)
        return trial  # type: ignore[no-any-return]

    def at(self, seconds: float, step: float = 0.5) -> list[str]:
        """Let Tune take steps until then; return which actors were killed."""
        while self.now < seconds:
            self.now = min(self.now + step, seconds)
            self.timeout.on_step_begin(0, [])
        killed, self.killed[:] = list(self.killed), []
        return killed


def test_a_group_has_the_time_of_its_candidates_and_is_killed_once() -> None:
    searching = fakes.searcher(fakes.MemoryRecords(), trials=20, group=3, timeouts=TIMEOUTS)
    watched = Watched(searching)
    for name in ("a", "b"):
        assert len(searching.suggest(name)["schedules"]) == 3  # type: ignore[index, call-overload]
    first = watched.start("a")
    watched.at(20.0)
    watched.start("b")
    assert watched.at(30.0) == []
    assert watched.at(30.1) == ["actor of a"]
    assert watched.at(40.0) == []
    watched.timeout.on_trial_error(0, [], first)
    assert watched.at(50.1) == ["actor of b"]


def test_what_came_back_is_not_watched() -> None:
    searching = fakes.searcher(fakes.MemoryRecords(), trials=20, timeouts=TIMEOUTS)
    watched = Watched(searching)
    searching.suggest("a")
    trial = watched.start("a")
    watched.timeout.on_trial_complete(0, [], trial)
    assert watched.at(1e3) == []


def test_a_driver_that_was_held_up_blames_no_worker() -> None:
    """It waited for a database; the results that arrived meanwhile are taken one per step."""
    searching = fakes.searcher(fakes.MemoryRecords(), trials=20, group=1, timeouts=TIMEOUTS)
    watched = Watched(searching)
    searching.suggest("a")
    watched.start("a")
    assert watched.at(600.0, step=600.0) == []
    assert watched.at(608.0) == []
    assert watched.at(611.0) == ["actor of a"]


def test_candidates_of_a_group_that_hung_run_alone_and_the_slow_one_times_out() -> None:
    records = fakes.MemoryRecords()
    searching = fakes.searcher(records, trials=8, group=4, timeouts=TIMEOUTS)
    slow: list[str] = []
    names = iter(range(100))
    task: Any
    while isinstance(task := searching.suggest(name := f"t{next(names)}"), dict):
        slow = slow or [task["schedules"][1]]
        hangs = slow[0] in task["schedules"]
        if hangs:
            searching.trials.time_out(name)
        searching.on_trial_complete(name, None if hangs else fakes.measured(task), error=hangs)
    assert len(records.evaluations) == 8
    (failed,) = [e for e in records.evaluations if e.state == "failed"]
    assert (failed.schedule, failed.failure) == (PruningSchedule.parse(slow[0]), "TIMEOUT")
    assert "longer than 10 s" in (failed.error or "")


def test_a_confirmation_that_hangs_is_given_up_after_the_second_time() -> None:
    records, notes = fakes.MemoryRecords(), list[str]()
    searching = fakes.searcher(records, trials=4, confirm=True, timeouts=TIMEOUTS, note=notes.append)
    names = iter(range(100))
    task: Any
    hung: list[str] = []
    while isinstance(task := searching.suggest(name := f"t{next(names)}"), dict):
        hangs = task["task"] == "confirm" and not task["schedules"][0]
        if hangs:
            hung.append(name)
            assert searching.trials.time_limit(name) == 99.0
            searching.trials.time_out(name)
        searching.on_trial_complete(name, None if hangs else fakes.measured(task), error=hangs)
    assert len(hung) == 2
    assert any("took too long twice" in note for note in notes)
