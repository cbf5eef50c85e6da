"""Candidates race against the front, which stays what it would be without races; in the end it is confirmed."""

import itertools
from typing import Any

import pytest

from results import Evaluation
from results.records import Confirmation
from search.driver.progress import Snapshot
from search.driver.searcher import ScheduleSearcher
from search.driver.study_state import StudyState
from search.evaluation.protocol import CONFIRM, pack, unpack
from spaces import PruningSchedule
from spaces.errors import StoreError
from tests.search import fakes
from tests.search.fakes import (
    MemoryRecords,
    confirmed,
    dies,
    drive,
    instead,
    listening_searcher,
    measured,
    searched,
    searcher,
    small_space,
)


class TestRacing:
    def test_stopped_ones_are_recorded_as_far_as_they_got(self) -> None:
        records, snapshots = MemoryRecords(), list[Snapshot]()
        subject = searcher(records, trials=80, name="random", observe=snapshots.append)
        drive(subject, workers=2)
        stopped = [e for e in records.evaluations if e.state == "stopped"]
        assert len(stopped) > 10
        assert snapshots[-1].stopped == len(stopped)
        assert snapshots[-1].done == 80 - len(stopped)
        for e in stopped:
            assert 0 < e.images < fakes.IMAGES
            assert e.outcomes == pack(fakes.outcomes(e.schedule)[: e.images])
            assert e.top1 == e.estimate == fakes.outcomes(e.schedule)[: e.images].mean()
        assert all(e.images == fakes.IMAGES for e in records.evaluations if e.state == "done")
        assert not {e.hash for e in stopped} & {e.hash for e in records.study_state().front()}

    def test_they_are_told_to_the_sampler(self) -> None:
        records = MemoryRecords()
        subject, sampler = listening_searcher(records, trials=40)
        drive(subject)
        recorded = {e.hash: e.state for e in records.evaluations if e.parameters}
        assert {e.hash: e.state for e in sampler.told if e is not None} == recorded
        assert "stopped" in recorded.values()

    def test_a_candidate_races_against_the_best_that_costs_no_more(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=60, group=3)
        for number in itertools.count():
            known = list(records.evaluations)
            task = subject.suggest(str(number))
            if not isinstance(task, dict):
                break
            for text, bar in zip(task["schedules"], task["bars"], strict=True):
                cost = fakes.flops(PruningSchedule.parse(text))
                beaten = [e.top1 for e in known if e.state == "done" and e.flops <= cost]
                assert (bar is None) == (not beaten)
                assert bar is None or unpack(bar, fakes.IMAGES).mean() == max(beaten)
            subject.on_trial_complete(str(number), result=measured(task))

    def test_a_resume_races_with_what_is_recorded(self) -> None:
        records = MemoryRecords()
        drive(searcher(records, trials=20))
        task = searcher(records, trials=40).suggest("a")
        assert isinstance(task, dict)
        bars = [records.study_state().bar(fakes.flops(PruningSchedule.parse(text))) for text in task["schedules"]]
        assert [bar is not None for bar in bars] == [True] * 4
        assert task["bars"] == [pack(bar) for bar in bars if bar is not None]

    def test_it_can_be_switched_off(self) -> None:
        records = MemoryRecords()
        tasks = drive(searcher(records, trials=40, race=False))
        assert all(bar is None for task in tasks for bar in task["bars"])
        assert records.states == ["done"] * 40

    def test_the_front_is_that_of_a_search_without_races(self) -> None:
        """Except for what is stopped by mistake, which the error bounds.

        Random proposals do not depend on results, so that both searches try the same schedules.
        """
        error, joining, mistaken = 0.05, 0, 0
        for problem in range(6):
            found = []
            for race in (True, False):
                records = MemoryRecords()
                subject = searcher(records, trials=60, name="random", seed=problem, starts=False, group=1, race=race)
                drive(subject, work=fakes.worker(problem, error, batch=10))
                found.append(records)
            raced, whole = found
            assert [e.hash for e in raced.evaluations] == [e.hash for e in whole.evaluations]
            assert raced.states.count("stopped") > 10
            mistakes = {e.hash for e in would_have_joined(raced, problem) if e.state == "stopped"}
            joining += len(would_have_joined(raced, problem))
            mistaken += len(mistakes)
            fronts = [{e.hash for e in records.study_state().front()} for records in found]
            assert fronts[1] - fronts[0] <= mistakes
            assert mistakes or fronts[0] == fronts[1]
        assert joining > 80
        assert mistaken / joining <= error


def would_have_joined(records: MemoryRecords, problem: int) -> list[Evaluation]:
    """Those that are better on all images than all that cost no more and were recorded before them."""
    state = StudyState(fakes.OBJECTIVES, fakes.LAYOUT, [])
    found = []
    for evaluation in records.evaluations:
        bar = state.bar(evaluation.flops)
        if bar is None or fakes.outcomes(evaluation.schedule, problem=problem).sum() > bar.sum():
            found.append(evaluation)
        state.add(evaluation)
    return found


class TestConfirming:
    @pytest.mark.parametrize(("workers", "shuffle"), [(1, None), (3, 1), (3, 2)])
    def test_it_follows_the_last_evaluation_the_dense_model_first(self, workers: int, shuffle: int | None) -> None:
        records, snapshots = MemoryRecords(), list[Snapshot]()
        subject = searcher(records, trials=40, confirm=True, observe=snapshots.append)
        tasks = drive(subject, workers=workers, shuffle=shuffle)
        kinds = [task["task"] for task in tasks]
        assert kinds == sorted(kinds, reverse=True)  # "search" before "confirm"
        assert subject.error is None
        assert subject.complete
        assert subject.ending == "40 evaluations are recorded"
        assert subject.evaluated == len(subject.trials.overheads) == 40
        assert confirmed(tasks)[0] == ""
        assert len(confirmed(tasks)) == len(set(confirmed(tasks))) == len(records.confirmations)
        front = records.study_state().front()
        assert len(front) >= 3
        assert all(e.confirmed is not None and e.confirmed.images == fakes.CONFIRM_IMAGES for e in front)
        assert snapshots[-1].unconfirmed == 0
        assert snapshots[-1].front == len(front)

    def test_no_search_is_under_way_when_it_begins(self) -> None:
        subject = searcher(MemoryRecords(), trials=8, confirm=True)
        tasks = {name: subject.suggest(name) for name in "ab"}
        assert subject.suggest("c") is None
        subject.on_trial_complete("a", result=measured(tasks["a"]))  # type: ignore[arg-type]
        assert subject.suggest("d") is None
        subject.on_trial_complete("b", result=measured(tasks["b"]))  # type: ignore[arg-type]
        task = subject.suggest("e")
        assert task == {"task": CONFIRM, "schedules": [""]}

    @pytest.mark.parametrize("ending", ["time", "space"])
    def test_it_follows_however_the_search_ends(self, ending: str) -> None:
        records = MemoryRecords()
        options: dict[str, Any] = {"time_is_up": lambda: len(records.evaluations) >= 8}
        if ending == "space":
            options = {"over": small_space(), "starts": False, "name": "random"}
        subject = searcher(records, trials=40, confirm=True, **options)
        tasks = drive(subject, workers=2)
        assert ending in subject.ending
        assert len(records.evaluations) < 40
        assert confirmed(tasks)
        assert all(e.confirmed for e in records.study_state().front())

    def test_it_does_not_follow_a_signal_but_the_resume_makes_up_for_it(self) -> None:
        records = MemoryRecords()
        subject = searcher(records, trials=20, confirm=True)
        tasks = [drive_until(subject, 20, records)]
        subject.halt("a signal")
        assert subject.suggest("next") == "FINISHED"
        assert not records.confirmations
        subject = searcher(records, trials=20, confirm=True)
        assert not subject.complete
        tasks = drive(subject)
        assert searched(tasks) == []
        assert len(confirmed(tasks)) == len(records.confirmations) >= 3
        subject = searcher(records, trials=20, confirm=True)
        assert subject.complete
        assert drive(subject) == []

    def test_a_signal_between_two_of_them_loses_none(self) -> None:
        records = MemoryRecords()
        drive(searcher(records, trials=20))
        first = searcher(records, trials=20, confirm=True)
        task = first.suggest("a")
        assert isinstance(task, dict)
        first.halt("a signal")
        first.on_trial_complete("a", result=measured(task))
        assert first.suggest("b") == "FINISHED"
        assert len(records.confirmations) == 1
        tasks = drive(searcher(records, trials=20, confirm=True))
        assert "" not in confirmed(tasks)
        assert all(e.confirmed for e in records.study_state().front())

    def test_it_can_be_switched_off(self) -> None:
        records, snapshots = MemoryRecords(), list[Snapshot]()
        subject = searcher(records, trials=20, confirm=False, observe=snapshots.append)
        assert confirmed(drive(subject)) == []
        assert subject.complete
        assert {snapshot.unconfirmed for snapshot in snapshots} == {None}

    def test_a_worker_that_dies_is_tried_once_more(self) -> None:
        records, notes = MemoryRecords(), list[str]()
        drive(searcher(records, trials=20))
        tasks = drive(searcher(records, trials=20, confirm=True, note=notes.append), work=dies({0, 2, 3}))
        once, twice = confirmed(tasks)[0], confirmed(tasks)[2]
        assert [confirmed(tasks).count(text) for text in (once, twice)] == [2, 2]
        assert notes == [f"schedule {twice!r} could not be confirmed: its worker died twice"]
        assert PruningSchedule.parse(once).hash in records.confirmations
        assert [e.schedule.text for e in records.study_state().front() if not e.confirmed] == [twice]

    def test_what_cannot_be_confirmed_is_said_and_the_others_are(self) -> None:
        records, notes = MemoryRecords(), list[str]()
        drive(searcher(records, trials=20))
        subject = searcher(records, trials=20, confirm=True, note=notes.append)
        tasks = drive(subject, work=instead({1: fakes.failed()}))
        assert subject.error is None
        broken = confirmed(tasks)[1]
        assert notes == [f"schedule {broken!r} could not be confirmed: NonFiniteError: logits are NaN"]
        assert len(records.confirmations) == len(set(confirmed(tasks))) - 1
        assert subject.snapshot.failed == 0

    def test_a_score_that_the_store_refuses_ends_the_search(self) -> None:
        class Full(MemoryRecords):
            def confirm(self, confirmation: Confirmation) -> Confirmation | None:
                raise StoreError("disk full")

        subject = searcher(Full(), trials=8, confirm=True)
        tasks = drive(subject)
        assert isinstance(subject.error, StoreError)
        assert len(confirmed(tasks)) == 1


def drive_until(subject: ScheduleSearcher, count: int, records: MemoryRecords) -> None:
    """Evaluate until `count` are recorded."""
    while len(records.evaluations) < count:
        name = f"until-{len(records.evaluations)}"
        task = subject.suggest(name)
        assert isinstance(task, dict)
        subject.on_trial_complete(name, result=measured(task))
