"""Patience with a database that is away, and the spool for what it does not take, over a real store."""

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
from search.driver import spool as spool_module
from search.driver.patience import DEFAULT_SECONDS, FIRST_WAIT, LONGEST_WAIT, Patience
from search.driver.records import StudyRecords
from search.driver.search_setup import SearchSetup
from search.driver.spool import Spool, as_json, from_json
from search.driver.study_identity import IDENTITY
from spaces import PruningSchedule
from spaces.errors import DatabaseError, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 's.db'}", create=True) as opened:
        yield opened


@pytest.fixture
def study(store: Store, search_setup: SearchSetup) -> Study:
    return store.create_study(StudySpec(**search_setup.spec(), dense_top1=0.9, dense_loss=0.1, dense_latency_ms=1.0))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 's.db'}"


def evaluation(number: int = 0) -> Evaluation:
    schedule = PruningSchedule.of([(1 + number % 12, 0.5 - 0.01 * (number // 12))])
    return Evaluation(
        schedule, 100, 0.5, top1=0.5, loss=1.0, agreement=0.5, images=9, outcomes=b"\x80\x01", origin="gp"
    )


@pytest.mark.parametrize("before", ["open", "flock"])
def test_a_file_that_another_driver_takes_in_first_is_its_own(
    store: Store, study: Study, url: str, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Two start at once after an outage: the other one is done before this one opens the file, or locks it."""
    spool, notes = Spool(study, url), list[str]()
    spool.add(evaluation())
    spool.close()
    home: Any = Path if before == "open" else spool_module.fcntl
    real = getattr(home, before)

    def late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(home, before, real)
        Spool(study, url).take_in(store, notes.append)
        return real(*arguments, **options)

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


class Away:
    """A store whose next writes of results fail with these errors; what they wrote may stand all the same."""

    def __init__(self, store: Store, errors: list[DatabaseError], after: bool = False) -> None:
        self._store, self.errors, self._after = store, errors, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def record(self, *given: Any) -> Evaluation | None:
        return self._write(self._store.record, *given)

    def confirm(self, *given: Any) -> None:
        self._write(self._store.confirm, *given)

    def _write(self, write: Callable[..., Any], *given: Any) -> Any:
        if not self.errors:
            return write(*given)
        if self._after:
            write(*given)
        raise self.errors.pop(0)


def away(times: int) -> list[DatabaseError]:
    return [DatabaseError("database x: connection refused", transient=True)] * times


class Waits(list[float]):
    """A clock in which only waiting takes time; holds the waits."""

    def patience(self, seconds: float = DEFAULT_SECONDS, **options: Any) -> Patience:
        return Patience(seconds, sleep=self.append, clock=lambda: sum(self), **options)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def claimed(
    store: Any, study: Study, spool: Spool, patience: Patience | None = None, numbers: range = range(4)
) -> StudyRecords:
    """Records of a driver that has claimed these evaluations."""
    records = StudyRecords(store, study, store.enter(study, {}), spool, patience or Patience())
    records.claim([replace(evaluation(number), state="running") for number in numbers], trials=99)
    return records


@pytest.fixture
def spool(study: Study, url: str) -> Iterator[Spool]:
    spool = Spool(study, url)
    yield spool
    spool.close()


def test_a_result_is_returned_as_the_store_has_it(store: Store, study: Study, spool: Spool) -> None:
    records = claimed(store, study, spool)
    written = [records.record(evaluation(number)) for number in (2, 0)]
    assert written == [store.evaluation(study, evaluation(number).hash) for number in (2, 0)]
    assert [one.number for one in written if one is not None] == [0, 1]


def test_what_another_driver_queued_meanwhile_is_not_run_twice(store: Store, study: Study, spool: Spool) -> None:
    """That driver assumed that this one was gone, which then finds its own work waiting."""
    first, second = evaluation(0), evaluation(1)
    records = claimed(store, study, spool, numbers=range(2))
    store.leave(study, store.drivers(study)[0])  # what the other one does then
    store.record(study, second)
    assert records.take_over(9, 99) == []
    assert records.record(first)
    assert not records.record(second)
    assert [(e.hash, e.attempts) for e in store.evaluations(study)] == [(second.hash, 1), (first.hash, 2)]


@pytest.mark.parametrize("own", [True, False])
def test_a_driver_ends_when_its_database_has_lost_results(
    store: Store, study: Study, spool: Spool, tmp_path: Path, own: bool
) -> None:
    """A standby took over without the last commit, and numbers the next result as it numbered the lost one."""
    records = claimed(store, study, spool)
    assert records.record(evaluation(0))
    store.close()
    before = (tmp_path / "s.db").read_bytes()
    assert records.record(evaluation(1))
    if not own:
        assert [e.number for e in records.news().finished] == [0, 1]
    store.close()
    (tmp_path / "s.db").write_bytes(before)
    assert records.record(evaluation(2)) if own else store.record(study, evaluation(9))
    with pytest.raises(StoreError, match="has lost results that it had"):
        records.news()


def test_a_spooled_score_of_a_schedule_without_a_result_is_left_out(
    store: Store, study: Study, spool: Spool, url: str
) -> None:
    """The database has lost the result since; a resume would otherwise fail each time."""
    spool.add(Confirmation(evaluation().hash, 0.5, 1.0, 0.5, 9, 1.0, 1.0, 1.0))
    spool.close()
    notes: list[str] = []
    Spool(study, url).take_in(store, notes.append)
    assert "took 0 results in" in notes[0]
    assert notes[0].endswith("(0 were known); 1 confirmed scores are left out, their schedules have no result")
    assert spool.path is not None
    assert not spool.path.exists()


class TestPatience:
    def test_it_waits_longer_each_time_and_reports_once(
        self, store: Store, study: Study, spool: Spool, waits: Waits
    ) -> None:
        notes: list[str] = []
        records = claimed(Away(store, away(9)), study, spool, waits.patience(note=notes.append))
        assert records.record(evaluation())
        assert [e.hash for e in store.evaluations(study)] == [evaluation().hash]
        assert [note.split(":")[0] for note in notes[:1]] == ["warning"]
        assert len(notes) == 2
        assert "answers again" in notes[1]
        longest = sum(min(FIRST_WAIT * 2**k, LONGEST_WAIT) for k in range(9))
        assert longest / 2 <= sum(waits) <= longest

    def test_two_drivers_wait_for_different_times(
        self, store: Store, study: Study, spool: Spool, waits: Waits
    ) -> None:
        totals = []
        for number in range(2):
            before = sum(waits)
            records = claimed(Away(store, away(3)), study, spool, waits.patience(), range(number, number + 1))
            records.record(evaluation(number))
            totals.append(sum(waits) - before)
        assert totals[0] != totals[1]

    def test_a_write_whose_answer_was_lost_is_not_doubled(
        self, store: Store, study: Study, spool: Spool, waits: Waits
    ) -> None:
        records = claimed(Away(store, away(1), after=True), study, spool, waits.patience())
        assert records.record(evaluation()) == store.evaluation(study, evaluation().hash)  # it is this driver's own
        assert len(store.evaluations(study)) == 1

    def test_a_permanent_error_is_not_waited_for(
        self, store: Store, study: Study, spool: Spool, waits: Waits
    ) -> None:
        lost: list[int] = []
        errors = [DatabaseError("database x: no such table", transient=False)]
        records = claimed(Away(store, errors), study, spool, waits.patience(lost=lambda: lost.append(1)))
        assert records.record(evaluation())
        assert (waits, lost) == ([], [1])
        assert "no such table; 1 results are kept in " in str(records.given_up())

    def test_a_result_that_contradicts_itself_is_an_error_at_once(
        self, store: Store, study: Study, spool: Spool
    ) -> None:
        records = claimed(store, study, spool)
        with pytest.raises(StoreError, match="lacks its top1"):
            records.record(replace(evaluation(), top1=None))
        assert records.patience.error is None

    def test_a_hurry_ends_the_wait(self, store: Store, study: Study, spool: Spool, waits: Waits) -> None:
        patience = waits.patience(hurry=lambda: len(waits) > 2)
        assert claimed(Away(store, away(99)), study, spool, patience).record(evaluation())
        assert sum(waits) < DEFAULT_SECONDS / 10
        assert spool.count == 1

    def test_once_patience_has_ended_all_results_are_spooled_and_a_resume_takes_them_in(
        self, store: Store, study: Study, url: str, spool: Spool, waits: Waits, tmp_path: Path
    ) -> None:
        store.record(study, evaluation(0))
        lost: list[int] = []
        broken = Away(store, away(1000))
        patience = waits.patience(20.0, lost=lambda: lost.append(1))
        records = claimed(broken, study, spool, patience, range(1, 4))
        for number in range(1, 4):
            kept = records.record(evaluation(number))
            assert kept is not None
            assert kept.number < 0  # the store gives numbers
        score = Confirmation(evaluation(1).hash, 0.5, 1.0, 0.5, 80, 1.0, 1.0, 0.5)
        records.confirm(score)
        assert (lost, spool.count) == ([1], 4)
        assert sum(waits) == pytest.approx(20.0)  # once, not for each result
        with pytest.raises(DatabaseError):
            records.evaluation(evaluation(0).hash)
        assert f"4 results are kept in {spool.path}" in str(records.given_up())
        assert len(store.evaluations(study)) == 1
        notes: list[str] = []
        Spool(study, url).take_in(store, notes.append)
        assert notes == []  # its driver is still running
        spool.close()
        broken.errors.clear()
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
        """A driver in a container that was restarted at once: it is not known yet that the old one is gone."""
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
            (lambda text: text.replace('spool": 1', 'spool": 2'), "is not of this version"),
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
        self, store: Store, study: Study, url: str, search_setup: SearchSetup
    ) -> None:
        path = spooled(study, url, range(2))
        spec = StudySpec(
            **(search_setup.spec() | {"name": "other"}), dense_top1=0.9, dense_loss=0.1, dense_latency_ms=1.0
        )
        Spool(store.create_study(spec), url).take_in(store, lambda note: pytest.fail(note))
        assert path.exists()

    def test_a_result_that_no_file_takes_is_counted(
        self, study: Study, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = Spool(study, url)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("search.driver.spool.FileIO", full)
        spool.add(evaluation())
        assert (spool.count, spool.lost, spool.reason) == (0, 1, "No space left on device")

    def test_the_name_holds_no_secret_and_no_path(
        self, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        addresses = [
            "postgresql://me:secret@host/db",
            "postgresql://you@host/db",
            "postgresql://you@host/db?password=p",
        ]
        paths = [spooled(renamed(study, "a/../b c"), address, range(1)) for address in addresses]
        assert {path.parent for path in paths} == {tmp_path}
        assert len({path.name.rsplit(".", 2)[0] for path in paths}) == 1  # but for a random part
        assert not any("secret" in path.name for path in paths)


def spooled(study: Study, url: str, numbers: range) -> Path:
    spool = Spool(study, url)
    for number in numbers:
        spool.add(evaluation(number))
    spool.close()
    assert spool.path is not None
    return spool.path


def renamed(study: Study, name: str) -> Study:
    return replace(study, spec=replace(study.spec, name=name))
