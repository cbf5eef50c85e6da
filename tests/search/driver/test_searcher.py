"""Each schedule is suggested once, recorded, and then told to the sampler; a study ends at exactly N."""

from dataclasses import replace
from typing import Any

import pytest

from results import Evaluation
from search.driver.progress import Snapshot
from search.driver.proposer import START
from search.driver.searcher import FAILURES_IN_A_ROW, ScheduleSearcher
from spaces import PruningSchedule
from spaces.errors import SearchError, StoreError
from spaces.published import starting_schedules
from tests.search import fakes
from tests.search.fakes import (
    MemoryRecords,
    Task,
    Work,
    dies,
    drive,
    instead,
    listening_searcher,
    measured,
    searched,
    searcher,
    small_space,
)


class TestEvaluating:
    @pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
    @pytest.mark.parametrize(("workers", "group"), [(1, 1), (1, 4), (3, 1), (3, 7)])
    def test_a_search_ends_at_exactly_n_without_duplicates(self, name: str, workers: int, group: int) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=40, name=name, group=group)
        tasks = drive(subject, workers=workers, shuffle=1)
        suggested = searched(tasks)
        assert subject.error is None
        assert len(suggested) == len(set(suggested)) == len(records.evaluations) == 40
        assert subject.ending == "40 evaluations are recorded"
        assert subject.evaluated == len(subject.trials.overheads) == 40
        assert all(0 < len(task["schedules"]) <= group for task in tasks)
        left = {records.study_state().computation(e.schedule) for e in records.evaluations}
        assert len(left) == 40

    def test_every_candidate_costs_no_more_than_the_limit(self) -> None:
        records, over = MemoryRecords(), fakes.space(budget="0.55")
        drive(searcher(records, trials=60, over=over))
        assert max(e.flops for e in records.evaluations) <= over.limit
        assert all(e.flops == fakes.flops(e.schedule) for e in records.evaluations)

    def test_a_candidate_above_the_limit_is_an_error(self) -> None:
        subject = searcher(MemoryRecords(), trials=5, over=fakes.broken_space(), starts=False)
        assert drive(subject) == []
        assert isinstance(subject.error, SearchError)
        assert "above the limit" in str(subject.error)

    def test_starting_schedules_come_first(self) -> None:
        records, over = MemoryRecords(), fakes.space(budget="0.75")
        drive(searcher(records, trials=40, over=over))
        starts = starting_schedules(over)
        assert 4 < len(starts) < 40
        assert [e.schedule for e in records.evaluations if e.origin == START] == starts
        assert [e.schedule for e in records.evaluations][: len(starts)] == starts
        assert all(e.parameters for e in records.evaluations if e.origin == START)  # the sampler learns from them

    @pytest.mark.parametrize("name", ["nsga2", "tpe"])
    def test_the_same_seed_searches_the_same(self, name: str) -> None:
        def run(seed: int) -> tuple[list[Task], list[str]]:
            records = MemoryRecords()
            tasks = drive(searcher(records, trials=50, seed=seed, name=name, confirm=True))
            return tasks, [e.hash for e in records.study_state().front()]

        one, again, other = run(5), run(5), run(6)
        assert one == again
        assert searched(one[0]) != searched(other[0])

    @pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
    def test_a_resume_reaches_n_and_repeats_nothing(self, name: str) -> None:
        records = MemoryRecords()
        drive(searcher(records, trials=15, name=name))
        first = [e.schedule.text for e in records.evaluations]
        resumed = searcher(records, trials=40, name=name)
        second = searched(drive(resumed, workers=2))
        assert (len(first), len(second), len(records.evaluations)) == (15, 25, 40)
        assert not set(first) & set(second)
        assert resumed.snapshot.reused <= 15  # starting ones are not proposed again

    def test_a_study_that_is_complete_suggests_nothing(self) -> None:
        records = MemoryRecords()
        assert not searcher(records, trials=10).complete
        drive(searcher(records, trials=10))
        for trials in (10, 4):
            subject = searcher(records, trials=trials)
            assert subject.complete
            assert drive(subject) == []

    def test_known_candidates_are_reused_and_an_exhausted_space_ends_the_search(self) -> None:
        records, snapshots = MemoryRecords(), list[Snapshot]()
        subject = searcher(
            records, trials=100, over=small_space(), starts=False, name="random", observe=snapshots.append
        )
        suggested = searched(drive(subject, workers=2))
        assert len(suggested) == len(set(suggested)) == 12
        assert "exhausted" in subject.ending
        assert subject.error is None
        assert subject.snapshot.reused > 0
        assert snapshots[-1].recorded == 12

    def test_the_rest_of_a_space_is_looked_for_once(self) -> None:
        """While the last ones are under way, Tune asks again and again."""
        subject, sampler = listening_searcher(
            MemoryRecords(), trials=100, over=small_space(), starts=False, name="random", group=12
        )
        tasks = [subject.suggest("a"), subject.suggest("b")]
        assert isinstance(tasks[0], dict)
        assert len(tasks[0]["schedules"]) == 12
        asked = sampler.asked
        assert tasks[1] is None
        assert subject.suggest("c") is None
        subject.on_trial_complete("a", result=measured(tasks[0]))
        assert subject.suggest("d") == "FINISHED"
        assert subject.evaluated == 12
        assert sampler.asked == asked

    def test_a_reused_result_is_told_to_the_sampler(self) -> None:
        records = MemoryRecords()
        subject, sampler = listening_searcher(
            records, trials=10, over=small_space(), starts=False, name="random", group=1
        )
        drive(subject)
        told = sampler.told
        assert subject.snapshot.reused > 0
        assert len(told) == 10 + subject.snapshot.reused
        assert {e.hash for e in told if e is not None} == {e.hash for e in records.evaluations}
        assert None not in told


class TestOtherProcesses:
    def test_another_process_may_record_meanwhile(self) -> None:
        """What the store knows is never run again, and counts towards N."""
        records = MemoryRecords()
        subject = searcher(records, trials=12, over=small_space(), starts=False, name="random", group=1)
        first = subject.suggest("a")
        assert isinstance(first, dict)
        elsewhere = [PruningSchedule.of([(block, 0.5)]) for block in range(1, 13)]
        for schedule in elsewhere:
            if [schedule.text] != first["schedules"]:
                figures = {"flops": fakes.flops(schedule), "flops_ratio": 0.5, "top1": 0.5, "loss": 0.5, "images": 9}
                records.record(Evaluation(schedule, **figures))  # type: ignore[arg-type]
        assert subject.suggest("b") is None  # what is under way may die
        subject.on_trial_complete("a", result=measured(first))
        assert subject.suggest("c") == "FINISHED"
        assert len(records.evaluations) == 12
        assert subject.error is None

    def test_a_result_that_another_process_was_first_with_is_dropped(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=3, group=2)
        task = subject.suggest("a")
        assert isinstance(task, dict)
        schedule = PruningSchedule.parse(task["schedules"][0])
        records.record(Evaluation(schedule, flops=fakes.flops(schedule), flops_ratio=0.5, top1=0.123, loss=1.0))
        subject.on_trial_complete("a", result=measured(task))
        assert [e.schedule.text for e in records.evaluations] == task["schedules"]
        assert records.evaluations[0].top1 == 0.123
        assert subject.evaluated == 1
        drive(subject)
        assert len(records.evaluations) == 3


class TestFailures:
    def test_failures_are_recorded_by_name_and_the_search_goes_on(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=12, race=False)
        drive(subject, work=instead({3: fakes.failed(), 6: fakes.failed("OutOfMemoryError: full", "OOM")}))
        assert subject.error is None
        assert [e.failure for e in records.evaluations if e.state == "failed"] == ["NONFINITE", "OOM"]
        assert [e.error for e in records.evaluations if e.state == "failed"][1] == "OutOfMemoryError: full"
        assert (subject.snapshot.done, subject.snapshot.failed) == (10, 2)
        assert all(e.top1 is None for e in records.evaluations if e.state == "failed")

    @pytest.mark.parametrize("workers", [1, 3])
    @pytest.mark.parametrize("group", [1, 4])
    def test_each_candidate_of_a_worker_that_died_runs_again_alone(self, workers: int, group: int) -> None:
        records, notes = MemoryRecords(), list[str]()
        subject = searcher(records, trials=24, group=group, note=notes.append)
        tasks = drive(subject, workers=workers, work=dies({2}))
        assert subject.error is None
        again = [task["schedules"] for task in tasks if task["schedules"][0] in tasks[2]["schedules"]][1:]
        assert again == [[text] for text in tasks[2]["schedules"]]
        assert len(searched(tasks)) == 24 + group
        assert sorted(set(searched(tasks))) == sorted(e.schedule.text for e in records.evaluations)
        assert not subject.snapshot.failed
        assert notes == [f"the worker of schedule {text!r} died; it runs again" for text in tasks[2]["schedules"]]

    def test_a_schedule_that_kills_its_worker_twice_has_failed_and_the_rest_of_its_group_has_not(self) -> None:
        records = MemoryRecords()
        fatal: list[str] = []

        def work(task: Task) -> dict[str, Any] | None:
            if not fatal:
                fatal.append(task["schedules"][1])
            return None if fatal[0] in task["schedules"] else measured(task)

        subject = searcher(records, trials=12)
        tasks = drive(subject, work=work)
        assert subject.error is None
        assert len(records.evaluations) == 12
        killed = [e for e in records.evaluations if e.state == "failed"]
        assert [(e.schedule.text, e.failure, e.seconds) for e in killed] == [(fatal[0], "KILLED", None)]
        assert "died twice on this schedule" in str(killed[0].error)
        assert searched(tasks).count(fatal[0]) == 2

    def test_what_died_counts_as_under_way(self) -> None:
        """The study never has more than N, whatever arrives while they wait to run again."""
        records = MemoryRecords()
        subject = searcher(records, trials=20, group=5)
        work: Work = lambda task: None if len(task["schedules"]) > 1 else measured(task)  # noqa: E731
        tasks = drive(subject, workers=4, work=work, shuffle=2)
        assert len(records.evaluations) == 20
        assert [len(task["schedules"]) for task in tasks] == [5] * 4 + [1] * 20

    def test_failures_in_a_row_end_the_search_with_the_first_error(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=50)
        broken = {i: fakes.failed(f"RuntimeError: broken {i}", "ERROR") for i in range(3, 50)}
        drive(subject, work=instead(broken))
        assert len(records.evaluations) == 3 + FAILURES_IN_A_ROW
        assert isinstance(subject.error, SearchError)
        assert "5 evaluations failed in a row; the first" in str(subject.error)
        assert "RuntimeError: broken 3" in str(subject.error)

    def test_an_error_of_the_store_ends_the_search_and_is_kept(self) -> None:
        class Full(MemoryRecords):
            def record(self, evaluation: Evaluation) -> Evaluation | None:
                if len(self.evaluations) == 2:
                    raise StoreError("disk full")
                return super().record(evaluation)

        records = Full()
        subject = searcher(records, trials=10, confirm=True, group=1)
        assert len(drive(subject)) == 3
        assert isinstance(subject.error, StoreError)
        assert len(records.evaluations) == 2


class TestStopping:
    def test_a_halt_lets_what_is_under_way_finish(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=40)
        task = subject.suggest("a")
        assert isinstance(task, dict)
        subject.halt("a signal")
        assert subject.suggest("b") == "FINISHED"
        subject.on_trial_complete("a", result=measured(task))
        assert len(records.evaluations) == 4
        assert subject.ending == "a signal"

    def test_nothing_runs_again_after_a_halt(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=40)
        subject.suggest("a")
        subject.halt("a signal")
        subject.on_trial_complete("a", error=True)
        assert subject.suggest("b") == "FINISHED"
        assert records.evaluations == []
        assert len(searched(drive(searcher(records, trials=40)))) == 40

    def test_a_trial_that_tune_stopped_is_not_recorded(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=40)
        subject.suggest("a")
        subject.on_trial_complete("a")
        assert records.evaluations == []
        assert subject.error is None

    def test_the_time_budget_ends_the_asking(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=40, time_is_up=lambda: len(records.evaluations) >= 7)
        assert len(drive(subject)) == 2
        assert len(records.evaluations) == 8
        assert subject.ending == "the time budget is spent"

    def test_the_snapshot_counts_earlier_runs_and_the_front(self) -> None:
        records = MemoryRecords()
        drive(searcher(records, trials=10, race=False))
        records.evaluations[0] = replace(records.evaluations[0], state="failed", top1=None, failure="ERROR")
        records.evaluations[1] = replace(records.evaluations[1], state="stopped")
        snapshot = searcher(records, trials=20).snapshot
        assert (snapshot.done, snapshot.stopped, snapshot.failed) == (8, 1, 1)
        assert (snapshot.reused, snapshot.trials) == (0, 20)
        assert 1 <= snapshot.front <= 8
        assert 0 < snapshot.hypervolume < 1
        assert snapshot.unconfirmed is None

    def test_it_leaves_nothing_in_tunes_folder(self) -> None:
        import pickle

        subject: ScheduleSearcher = searcher(MemoryRecords(), trials=3)
        assert len(pickle.dumps(subject)) < 200


def test_a_worker_that_is_refused_ends_the_search_and_no_candidate_fails_for_it() -> None:
    """What other workers have in flight is still recorded."""
    records = fakes.MemoryRecords()
    subject = fakes.searcher(records, trials=20, group=2)
    first, second = subject.suggest("first"), subject.suggest("second")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    subject.on_trial_complete("first", {"refused": "node n: torch is 1.0 there and 2.0 at the driver"})
    subject.on_trial_complete("second", fakes.measured(second))
    assert isinstance(subject.error, SearchError)
    assert str(subject.error) == "node n: torch is 1.0 there and 2.0 at the driver"
    assert subject.suggest("third") == "FINISHED"
    assert records.states == ["done", "done"]
    assert [e.schedule.text for e in records.evaluations] == second["schedules"]
