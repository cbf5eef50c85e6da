"""Patience with a database that is away, and the spool for what it does not take: over a real store."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import Evaluation, Study, StudySpec
from results.records import Confirmation
from results.store.store import Store
from search.driver import records as module
from search.driver import spool as spool_module
from search.driver.records import ClaimedRecords, PatientRecords
from search.driver.search_setup import IDENTITY, SearchSetup
from search.driver.spool import Spool, as_json, from_json
from spaces import PruningSchedule
from spaces.errors import DatabaseError, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 's.db'}", create=True) as opened:
        yield opened


@pytest.fixture
def study(store: Store, subject: SearchSetup) -> Study:
    return store.create_study(StudySpec(**subject.spec(), dense_top1=0.9, dense_loss=0.1, dense_latency_ms=1.0))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 's.db'}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits, in place of waiting; they are all the time that goes by."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    monkeypatch.setattr(module.time, "monotonic", lambda: sum(waits))
    return waits


def evaluation(number: int = 0) -> Evaluation:
    schedule = PruningSchedule.of([(1 + number % 12, 0.5 - 0.01 * (number // 12))])
    return Evaluation(
        schedule, 100, 0.5, top1=0.5, loss=1.0, agreement=0.5, images=9, outcomes=b"\x80\x01", origin="gp"
    )


@pytest.mark.parametrize("before", ["_opened", "flock"])
def test_a_file_that_another_driver_takes_in_first_is_its_own(
    store: Store, study: Study, url: str, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Two start at once after an outage: the other is through before this one opens the file, or locks it."""
    spool, notes = Spool(study, url), list[str]()
    spool.add(evaluation())
    spool.close()
    home: Any = Spool if before == "_opened" else spool_module.fcntl
    real = getattr(home, before)

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(home, before, real)
        Spool(study, url).take_in(store, notes.append)
        return real(*arguments)

    monkeypatch.setattr(home, before, late)
    Spool(study, url).take_in(store, notes.append)
    assert len(notes) == 1
    assert notes[0].startswith("took 1 results in")
    assert len(store.evaluations(study)) == 1


@pytest.mark.parametrize("field", sorted(IDENTITY))
def test_results_of_a_study_with_another_identity_are_not_taken_in(
    store: Store, study: Study, url: str, field: str
) -> None:
    spool = Spool(study, url)
    spool.add(evaluation())
    spool.close()
    other = replace(study, spec=replace(study.spec, **{field: None}))
    with pytest.raises(StoreError, match="with other settings; move it away"):
        Spool(other, url).take_in(store, pytest.fail)


def claimed(store: Store, study: Study, numbers: range = range(4)) -> ClaimedRecords:
    """Records of a driver that holds these evaluations."""
    records = ClaimedRecords(store, study, store.enter(study, {}))
    records.claim([replace(evaluation(number), state="running") for number in numbers], trials=99)
    return records


class Away:
    """Records whose database answers each call with the next error, if there is one; what it wrote may stand."""

    def __init__(
        self, store: Store, study: Study, errors: list[DatabaseError], after: bool = False, numbers: range = range(4)
    ) -> None:
        self._records, self.errors, self._after = claimed(store, study, numbers), errors, after
        write = store.record

        def record(*given: Any) -> bool:
            if not self.errors:
                return write(*given)
            if self._after:
                write(*given)
            raise self.errors.pop(0)

        store.record = record  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def confirm(self, confirmation: Confirmation) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self._records.confirm(confirmation)


def away(times: int) -> list[DatabaseError]:
    return [DatabaseError("database x: connection refused", transient=True)] * times


def test_what_another_driver_queued_meanwhile_is_not_run_twice(store: Store, study: Study) -> None:
    """It was taken for gone, and comes back to find its own work waiting."""
    first, second = evaluation(0), evaluation(1)
    records = claimed(store, study, range(2))
    store.leave(study, records._driver)  # what the other one does when it takes this one for gone
    store.record(study, second)
    assert records.take_over(9, 99) == []
    assert records.record(first)
    assert not records.record(second)
    assert [(e.hash, e.attempts) for e in store.evaluations(study)] == [(second.hash, 1), (first.hash, 2)]


class TestPatience:
    def test_it_waits_longer_each_time_and_says_so_once(
        self, store: Store, study: Study, url: str, clock: list[float]
    ) -> None:
        notes: list[str] = []
        subject = PatientRecords(Away(store, study, away(9)), Spool(study, url), note=notes.append)
        assert subject.record(evaluation())
        assert [e.hash for e in store.evaluations(study)] == [evaluation().hash]
        assert [note.split(":")[0] for note in notes[:1]] == ["warning"]
        assert len(notes) == 2
        assert "answers again" in notes[1]
        longest = sum(min(module.FIRST_WAIT * 2**k, module.LONGEST_WAIT) for k in range(9))
        assert longest / 2 <= sum(clock) <= longest

    def test_two_drivers_do_not_wait_alike(self, store: Store, study: Study, url: str, clock: list[float]) -> None:
        totals = []
        for number in range(2):
            before = sum(clock)
            records = Away(store, study, away(3), numbers=range(number, number + 1))
            PatientRecords(records, Spool(study, url)).record(evaluation(number))
            totals.append(sum(clock) - before)
        assert totals[0] != totals[1]

    def test_a_commit_whose_word_was_lost_is_not_doubled(
        self, store: Store, study: Study, url: str, clock: list[float]
    ) -> None:
        subject = PatientRecords(Away(store, study, away(1), after=True), Spool(study, url))
        assert subject.record(evaluation())  # it is this driver's own
        assert len(store.evaluations(study)) == 1

    def test_what_stays_wrong_is_not_waited_for(
        self, store: Store, study: Study, url: str, clock: list[float]
    ) -> None:
        lost: list[int] = []
        errors = [DatabaseError("database x: no such table", transient=False)]
        subject = PatientRecords(Away(store, study, errors), Spool(study, url), lost=lambda: lost.append(1))
        assert subject.record(evaluation())
        assert (clock, lost) == ([], [1])
        assert "no such table; 1 results are kept in " in str(subject.farewell())

    def test_a_record_that_contradicts_itself_is_an_error_at_once(self, store: Store, study: Study, url: str) -> None:
        subject = PatientRecords(claimed(store, study), Spool(study, url))
        with pytest.raises(StoreError, match="lacks its top1"):
            subject.record(replace(evaluation(), top1=None))
        assert subject.error is None

    def test_a_hurry_ends_the_wait(self, store: Store, study: Study, url: str, clock: list[float]) -> None:
        spool = Spool(study, url)
        subject = PatientRecords(Away(store, study, away(99)), spool, hurry=lambda: len(clock) > 2)
        assert subject.record(evaluation())
        assert sum(clock) < module.PATIENCE / 10
        assert spool.count == 1

    def test_when_patience_ends_all_that_arrives_is_spooled_and_a_resume_takes_it_in(
        self, store: Store, study: Study, url: str, clock: list[float], tmp_path: Path
    ) -> None:
        store.record(study, evaluation(0))
        lost: list[int] = []
        spool = Spool(study, url)
        records = Away(store, study, away(1000), numbers=range(1, 4))
        subject = PatientRecords(records, spool, patience=20.0, lost=lambda: lost.append(1))
        for number in range(1, 4):
            assert subject.record(evaluation(number))
        score = Confirmation(evaluation(1).hash, 0.5, 1.0, 0.5, 80, 1.0, 1.0, 0.5)
        subject.confirm(score)
        assert (lost, spool.count) == ([1], 4)
        assert sum(clock) == pytest.approx(20.0)  # once, not for each result
        with pytest.raises(DatabaseError):
            subject.evaluation(evaluation(0).hash)
        assert f"4 results are kept in {spool.path}" in str(subject.farewell())
        assert len(store.evaluations(study)) == 1
        notes: list[str] = []
        Spool(study, url).take_in(store, notes.append)
        assert notes == []  # its driver is still there
        spool.close()
        records.errors.clear()
        store.leave(study, store.drivers(study)[0])
        Spool(study, url).take_in(store, notes.append)
        assert [note.split(" in from ")[0] for note in notes] == ["took 4 results"]
        found = store.evaluations(study)
        assert [e.hash for e in found] == [evaluation(number).hash for number in range(4)]
        assert found[1].outcomes == evaluation().outcomes
        confirmed = found[1].confirmed
        assert confirmed is not None
        assert replace(confirmed, finished_at=None) == score
        assert list(tmp_path.glob("*spool*")) == []


class TestSpool:
    @given(st.integers(0, 99), st.sampled_from(["done", "failed", "stopped"]), st.binary(max_size=9), st.floats(0, 1))
    def test_a_record_comes_back(self, number: int, state: str, outcomes: bytes, top1: float) -> None:
        record = replace(
            evaluation(number),
            state=state,
            outcomes=outcomes,
            top1=top1,
            parameters={"a": 0.1},
            sampler_state={"b": [1]},
        )
        assert from_json(json.loads(json.dumps({"evaluation": as_json(record)}))) == record

    def test_each_result_is_taken_in_once_though_the_end_is_cut_short(
        self, store: Store, study: Study, url: str
    ) -> None:
        path = spooled(study, url, range(3))
        path.write_bytes(path.read_bytes()[:-5])
        store.record(study, evaluation(0))
        notes: list[str] = []
        Spool(study, url).take_in(store, notes.append)
        assert [e.hash for e in store.evaluations(study)] == [evaluation(0).hash, evaluation(1).hash]
        assert len(notes) == 1
        assert notes[0].startswith("took 1 results in from ")
        assert notes[0].endswith("(1 were known); its last line was cut short and is left out")

    def test_a_result_whose_schedule_another_driver_holds_is_not_lost(
        self, store: Store, study: Study, url: str
    ) -> None:
        """A driver in a container, started again at once: nobody can tell yet that the old one is gone."""
        path, notes = spooled(study, url, range(2)), list[str]()
        old = store.enter(study, {})
        store.claim(study, old, [replace(evaluation(1), state="running")], 99)
        Spool(study, url).take_in(store, notes.append)
        assert "took 1 results in" in notes[0]
        assert "1 are still claimed by another driver: the file stays" in notes[0]
        store.leave(study, old)
        Spool(study, url).take_in(store, notes.append)
        assert [e.hash for e in store.evaluations(study)] == [evaluation(0).hash, evaluation(1).hash]
        assert not path.exists()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda text: text.replace('"top1"', '"top"'), "line 2 is damaged"),
            (lambda text: text.replace('{"evaluation"', '{"evil"'), "line 2 is damaged: kind 'evil'"),
            (lambda text: text.replace('"settings": "', '"settings": "0'), "with other settings"),
            (lambda text: text.replace('spool": 1', 'spool": 2'), "is none of this version"),
            (lambda text: "\n" + text, "spool"),
            (lambda text: text.replace("gp", "\udcff"), "can't decode byte 0xff"),
        ],
    )
    def test_a_file_that_is_damaged_or_not_of_this_study_is_refused_and_left(
        self, store: Store, study: Study, url: str, change: Callable[[str], str], words: str
    ) -> None:
        path = spooled(study, url, range(2))
        path.write_text(changed := change(path.read_text()), errors="surrogateescape")
        with pytest.raises(StoreError, match=words) as caught:
            Spool(study, url).take_in(store, lambda note: None)
        assert str(path) in str(caught.value)
        assert path.read_text(errors="surrogateescape") == changed
        assert store.evaluations(study) == []

    def test_another_studys_file_is_not_touched(
        self, store: Store, study: Study, url: str, subject: SearchSetup
    ) -> None:
        path = spooled(study, url, range(2))
        spec = StudySpec(**(subject.spec() | {"name": "other"}), dense_top1=0.9, dense_loss=0.1, dense_latency_ms=1.0)
        Spool(store.create_study(spec), url).take_in(store, lambda note: pytest.fail(note))
        assert path.exists()

    def test_it_says_what_it_could_not_keep(self, study: Study, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        spool = Spool(study, url)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("search.driver.spool.FileIO", full)
        spool.add(evaluation())
        assert (spool.count, spool.lost, spool.reason) == (0, 1, "No space left on device")

    def test_the_name_holds_no_secret_and_no_path(self, study: Study) -> None:
        addresses = [
            "postgresql://me:secret@host/db",
            "postgresql://you@host/db",
            "postgresql://you@host/db?password=p",
        ]
        stems = {Spool(replace_name(study, "a/../b c"), address)._stem for address in addresses}
        assert len(stems) == 1
        assert "/" not in (stem := stems.pop())
        assert "secret" not in stem


def spooled(study: Study, url: str, numbers: range) -> Path:
    spool = Spool(study, url)
    for number in numbers:
        spool.add(evaluation(number))
    spool.close()
    assert spool.path is not None
    return spool.path


def replace_name(study: Study, name: str) -> Study:
    return replace(study, spec=replace(study.spec, name=name))
