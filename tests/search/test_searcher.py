"""Each schedule is suggested once, recorded, and only then told; a study ends at exactly N."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from results import Evaluation
from search.progress import Snapshot
from search.searcher import FAILURES_IN_A_ROW, ScheduleSearcher
from spaces import PruningSchedule
from spaces.errors import SearchError, StoreError
from spaces.published import published_schedules
from spaces.space import SearchSpace
from tests.search import fakes
from tests.search.fakes import MemoryRecords, drive, measured, searcher


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_search_ends_at_exactly_n_without_duplicates(name: str, workers: int) -> None:
    records = MemoryRecords()
    subject = searcher(records, trials=40, name=name)
    suggested = drive(subject, workers=workers)
    assert subject.error is None
    assert len(suggested) == len(set(suggested)) == len(records.evaluations) == 40
    assert subject.ending == "40 evaluations are recorded"


def test_every_candidate_costs_no_more_than_the_limit() -> None:
    records, over = MemoryRecords(), fakes.space(budget="0.55")
    drive(searcher(records, trials=60, over=over))
    assert max(e.flops for e in records.evaluations) <= over.limit
    assert all(e.flops == fakes.flops(e.schedule) for e in records.evaluations)


def test_a_candidate_above_the_limit_is_an_error() -> None:
    class Broken(type(fakes.space())):  # type: ignore[misc]
        def schedule(self, values: Any) -> PruningSchedule:
            return PruningSchedule()

    over = fakes.space()
    over.__class__ = Broken
    subject = searcher(MemoryRecords(), trials=5, over=over, published=False)
    assert drive(subject) == []
    assert isinstance(subject.error, SearchError)
    assert "above the limit" in str(subject.error)


def test_published_schedules_within_the_budget_come_first() -> None:
    records, over = MemoryRecords(), fakes.space(budget="0.75")
    drive(searcher(records, trials=30, over=over))
    fitting = [s for s in published_schedules(fakes.LAYOUT) if fakes.flops(s) <= over.limit]
    assert 0 < len(fitting) < len(published_schedules(fakes.LAYOUT))
    assert [e.schedule for e in records.evaluations if e.origin == "published"] == fitting
    assert [e.schedule for e in records.evaluations][: len(fitting)] == fitting
    assert all(e.parameters for e in records.evaluations if e.origin == "published")  # the sampler learns from them


def test_the_same_seed_searches_the_same() -> None:
    runs = [drive(searcher(MemoryRecords(), trials=30, seed=seed)) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_a_resume_reaches_n_and_repeats_nothing(name: str) -> None:
    records = MemoryRecords()
    drive(searcher(records, trials=15, name=name))
    first = [e.schedule.text for e in records.evaluations]
    resumed = searcher(records, trials=40, name=name)
    second = drive(resumed, workers=2)
    assert (len(first), len(second), len(records.evaluations)) == (15, 25, 40)
    assert not set(first) & set(second)
    assert resumed.snapshot.reused <= 15  # published ones are not proposed again


def test_a_study_that_is_complete_suggests_nothing() -> None:
    records = MemoryRecords()
    drive(searcher(records, trials=10))
    assert drive(searcher(records, trials=10)) == []
    assert drive(searcher(records, trials=4)) == []


class Small(SearchSpace):
    """Twelve schedules, whatever the values: a step of 0.5 after one of the blocks 1 … 12."""

    def schedule(self, values: Any) -> PruningSchedule:
        return PruningSchedule.of([(1 + int(11.999 * values["target"]), 0.5)])

    def values(self, schedule: PruningSchedule) -> None:
        return None


def small_space() -> SearchSpace:
    over = fakes.space(budget="1")
    over.__class__ = type("Small", (Small, type(over)), {})
    return over


def test_known_candidates_are_reused_and_an_exhausted_space_ends_the_search() -> None:
    records, snapshots = MemoryRecords(), list[Snapshot]()
    subject = searcher(
        records, trials=100, over=small_space(), published=False, name="random", observe=snapshots.append
    )
    suggested = drive(subject, workers=2)
    assert len(suggested) == len(set(suggested)) == 12
    assert "exhausted" in subject.ending
    assert subject.error is None
    assert subject.snapshot.reused > 0
    assert snapshots[-1].done == 12


def test_a_reused_result_is_told_to_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = searcher(MemoryRecords(), trials=10, over=small_space(), published=False, name="random")
    told: list[Evaluation | None] = []
    tell = subject._sampler.tell
    monkeypatch.setattr(subject._sampler, "tell", lambda draw, e: (told.append(e), tell(draw, e)))
    drive(subject)
    assert subject.snapshot.reused > 0
    assert len(told) == 10 + subject.snapshot.reused
    assert all(e is not None and e.state == "done" for e in told)


def test_another_process_may_record_meanwhile() -> None:
    """What the store knows is never run again, and counts towards N."""
    records = MemoryRecords()
    subject = searcher(records, trials=12, over=small_space(), published=False, name="random")
    first = subject.suggest("a")
    assert isinstance(first, dict)
    elsewhere = [PruningSchedule.of([(block, 0.5)]) for block in range(1, 13)]
    for schedule in elsewhere:
        if schedule.text != first["schedule"]:
            figures = {k: v for k, v in measured(schedule.text).items() if k in ("top1", "loss", "images")}
            records.record(Evaluation(schedule, flops=fakes.flops(schedule), flops_ratio=0.5, **figures))
    assert subject.suggest("b") == "FINISHED"
    subject.on_trial_complete("a", result=measured(first["schedule"]))
    assert len(records.evaluations) == 12
    assert subject.error is None


def test_a_result_that_another_process_was_first_with_is_dropped() -> None:
    records = MemoryRecords()
    subject = searcher(records, trials=3)
    config = subject.suggest("a")
    assert isinstance(config, dict)
    schedule = PruningSchedule.parse(config["schedule"])
    records.record(Evaluation(schedule, flops=fakes.flops(schedule), flops_ratio=0.5, top1=0.123, loss=1.0))
    subject.on_trial_complete("a", result=measured(config["schedule"]))
    assert [e.top1 for e in records.evaluations] == [0.123]
    assert subject.evaluated == 0
    drive(subject)
    assert len(records.evaluations) == 3


def test_failures_are_recorded_by_name_and_the_search_goes_on() -> None:
    counter = itertools.count()
    failed = {"failure": "NONFINITE", "error": "NonFiniteError: logits are NaN", "images": 0, "done": True}

    def result(text: str) -> dict[str, Any] | None:
        return {3: failed, 5: None, 6: None}.get(next(counter), measured(text))

    records = MemoryRecords()
    subject = searcher(records, trials=12)
    drive(subject, result=result)
    assert subject.error is None
    assert [e.failure for e in records.evaluations if e.state == "failed"] == ["NONFINITE", "KILLED"]
    assert (subject.snapshot.done, subject.snapshot.failed) == (10, 2)
    assert all(e.top1 is None for e in records.evaluations if e.state == "failed")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_schedule_whose_worker_died_once_runs_again(workers: int) -> None:
    counter = itertools.count()
    records = MemoryRecords()
    subject = searcher(records, trials=12)
    suggested = drive(subject, workers=workers, result=lambda text: None if next(counter) == 11 else measured(text))
    assert subject.error is None
    assert len(suggested) == 13
    assert sorted(set(suggested)) == sorted(e.schedule.text for e in records.evaluations)
    assert all(e.state == "done" for e in records.evaluations)


def test_failures_in_a_row_end_the_search_with_the_first_error() -> None:
    counter = itertools.count()

    def result(text: str) -> dict[str, Any] | None:
        broken = {"failure": "ERROR", "error": f"RuntimeError: broken {next(counter)}", "images": 0}
        return broken if str(broken["error"])[-1] > "2" else measured(text)

    records = MemoryRecords()
    subject = searcher(records, trials=50)
    drive(subject, result=result)
    assert len(records.evaluations) == 3 + FAILURES_IN_A_ROW
    assert isinstance(subject.error, SearchError)
    assert "5 evaluations failed in a row; the first" in str(subject.error)
    assert "RuntimeError: broken 3" in str(subject.error)


def test_an_error_of_the_store_ends_the_search_and_is_kept() -> None:
    class Full(MemoryRecords):
        def record(self, evaluation: Evaluation) -> bool:
            if len(self.evaluations) == 2:
                raise StoreError("disk full")
            return super().record(evaluation)

    subject = searcher(Full(), trials=10)
    assert len(drive(subject)) == 3
    assert isinstance(subject.error, StoreError)


def test_a_stop_lets_what_is_under_way_finish() -> None:
    records = MemoryRecords()
    subject = searcher(records, trials=40)
    config = subject.suggest("a")
    assert isinstance(config, dict)
    subject.stop("a signal")
    assert subject.suggest("b") == "FINISHED"
    subject.on_trial_complete("a", result=measured(config["schedule"]))
    assert len(records.evaluations) == 1
    assert subject.ending == "a signal"


def test_a_trial_that_tune_stopped_is_not_recorded() -> None:
    records = MemoryRecords()
    subject = searcher(records, trials=40)
    subject.suggest("a")
    subject.on_trial_complete("a")
    assert records.evaluations == []
    assert subject.error is None


def test_the_time_budget_ends_the_asking() -> None:
    records = MemoryRecords()
    subject = searcher(records, trials=40, deadline=lambda: len(records.evaluations) >= 7)
    assert len(drive(subject)) == 7
    assert subject.ending == "the time budget is spent"


def test_the_snapshot_counts_earlier_runs_and_the_front() -> None:
    records = MemoryRecords()
    drive(searcher(records, trials=10))
    records.evaluations[0] = replace(records.evaluations[0], state="failed", top1=None, failure="ERROR")
    snapshot = searcher(records, trials=20).snapshot
    assert (snapshot.done, snapshot.failed, snapshot.reused, snapshot.trials) == (9, 1, 0, 20)
    assert 1 <= snapshot.front <= 9
    assert 0 < snapshot.hypervolume < 1


def test_it_leaves_nothing_in_tunes_folder() -> None:
    import pickle

    subject: ScheduleSearcher = searcher(MemoryRecords(), trials=3)
    assert len(pickle.dumps(subject)) < 200
