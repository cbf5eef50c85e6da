"""Opening a database: atomic creation, concurrent processes, and refusal of files of other programs."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from results import Evaluation, StudySpec
from results.store.database import open_database, parse_address
from results.store.schema import REVISIONS, VERSION_TABLE, Base
from results.store.store import Store
from spaces.errors import StoreError, UsageError
from tests.patience import PATIENCE
from tests.results.engines import both_engines

MakeSpec = Callable[..., StudySpec]
MakeEvaluation = Callable[..., Evaluation]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_refused(url: str, folder: Path, match: str) -> None:
    """Opening fails in one line that names the file, with or without create, and changes no file."""
    before = files(folder)
    for create in (False, True):
        with pytest.raises(StoreError, match=match) as caught:
            Store.open(url, create=create)
        assert "\n" not in str(caught.value)
        assert "store.db" in str(caught.value)
        assert files(folder) == before


# --- what is made -----------------------------------------------------------------------------------------


def test_a_new_database_has_the_schema_of_the_models(url: str, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    Store.open(url, create=True).close()
    assert list(files(tmp_path)) == ["store.db"], "no other file is left behind"
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == REVISIONS[-1]
        checks = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'evaluations'").scalar()
    assert "CHECK (state IN ('queued', 'running', 'done', 'failed', 'stopped'))" in str(checks)
    config = Config()
    config.set_main_option("script_location", "results.store:migrations")
    config.set_main_option("path_separator", "os")
    scripts = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(scripts)) == REVISIONS


def test_constraints_of_the_database_refuse_invalid_rows(store: Store, make_spec: MakeSpec, url: str) -> None:
    store.create_study(make_spec())
    insert = (
        "INSERT INTO evaluations (study_id, number, schedule_hash, schedule, flops, flops_ratio, images, origin,"
        " parameters, sampler_state, state, failure, top1, loss)"
        " VALUES (1, 0, 'x', '', 1, 1, 1, '', '{}', '{}', ?, ?, ?, ?)"
    )
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        for values in [
            ("asleep", None, None, None),
            ("failed", "BORED", None, None),
            ("failed", None, None, None),
            ("done", "OOM", 0.5, 0.5),
            ("done", None, None, 0.5),
        ]:
            with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
                connection.execute(insert, values)
        connection.execute(insert, ("queued", None, None, None))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed"):
            connection.execute(insert, ("done", None, 0.5, 0.5))


def test_reading_changes_no_file(
    url: str, tmp_path: Path, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    with Store.open(url, create=True) as store:
        store.record(store.create_study(make_spec()), make_evaluation())
    before = files(tmp_path)
    assert list(before) == ["store.db"]
    with Store.open(url) as store:
        assert len(store.front(store.study("digits"))) == 1
    assert files(tmp_path) == before


def test_a_read_only_database_can_be_read(
    url: str,
    tmp_path: Path,
    make_spec: MakeSpec,
    make_evaluation: MakeEvaluation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Store.open(url, create=True) as store:
        study = store.create_study(make_spec())
        store.record(study, make_evaluation())
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # the tests may run as root
    with Store.open(url) as store:
        assert len(store.front(study)) == 1
        assert list(files(tmp_path)) == ["store.db"], "no log is made to read"
        with pytest.raises(StoreError, match="readonly database: the file or its folder cannot be written"):
            store.record(study, make_evaluation("4:0.5"))


def test_alembic_is_loaded_only_to_change_the_schema(url: str) -> None:
    code = (
        "import sys\n"
        "import results\n"
        "assert 'sqlalchemy' not in sys.modules, 'results alone must stay light'\n"
        "from results.store import Store\n"
        "Store.open(sys.argv[1], create=True).close()\n"
        "print('alembic' in sys.modules)\n"
    )
    answers = [
        subprocess.run([sys.executable, "-c", code, url], check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    ]
    assert answers == ["True", "False"]


# --- what is refused --------------------------------------------------------------------------------------


def test_reading_does_not_create_a_missing_file(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"store\.db: does not exist; choose another with --db"):
        Store.open(url)
    assert files(tmp_path) == {}


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be created: No such file or directory"):
        Store.open(f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}", create=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be created: Not a directory"):
        Store.open(f"sqlite:///{tmp_path / 'file' / 'store.db'}", create=True)


def test_a_folder_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "store.db").mkdir()
    assert_refused(url, tmp_path, "is a folder")


@pytest.mark.parametrize("content", [b"", b"SQLite", b"SQLite format 3\0" + b"\1" * 40], ids=["empty", "6", "56"])
def test_an_incomplete_header_is_refused(url: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)
    assert_refused(url, tmp_path, f"is truncated at {len(content)} bytes")


@pytest.mark.parametrize("content", [b"not a database\n" * 500, bytes(8192), b"x"])
def test_garbage_is_refused(url: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.db").write_bytes(content)
    assert_refused(url, tmp_path, "is not an SQLite database")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_database_is_refused(url: str, tmp_path: Path, make_spec: MakeSpec, share: float) -> None:
    with Store.open(url, create=True) as store:
        store.create_study(make_spec())
    whole = (tmp_path / "store.db").read_bytes()
    (tmp_path / "store.db").write_bytes(whole[: int(len(whole) * share)])
    assert_refused(url, tmp_path, "is truncated")


def test_a_damaged_database_is_an_error_of_one_line(url: str, tmp_path: Path, make_spec: MakeSpec) -> None:
    with Store.open(url, create=True) as store:
        store.create_study(make_spec())
    path = tmp_path / "store.db"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * (path.stat().st_size - 100))
    assert_refused(url, tmp_path, "malformed: the database is damaged")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_another_programs_database_is_refused(url: str, tmp_path: Path, journal: str) -> None:
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        # Optuna's tables have names like ours.
        connection.execute("CREATE TABLE studies (study_id INTEGER)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('v3.2.0.a')")
        connection.commit()
    assert_refused(url, tmp_path, "belongs to another program")


def test_another_programs_log_is_not_recovered(url: str, tmp_path: Path) -> None:
    source = tmp_path / "live"
    source.mkdir()
    with closing(sqlite3.connect(source / "store.db")) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
        for name in ("store.db", "store.db-wal"):  # as a crash leaves them
            (tmp_path / name).write_bytes((source / name).read_bytes())
    assert_refused(url, tmp_path, "belongs to another program")


def test_a_newer_schema_is_refused(url: str, tmp_path: Path) -> None:
    Store.open(url, create=True).close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        connection.commit()
    assert_refused(
        url,
        tmp_path,
        f"has schema 9999, but this prunefront supports up to {REVISIONS[-1]}; upgrade prunefront",
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("store.db", r"for a file write sqlite:///store\.db"),
        ("", "expected sqlite:///FILE"),
        ("mysql://me:secret@host/db", "expected sqlite:///FILE"),
        ("postgresql://me:secret@host:port/db", "expected sqlite:///FILE"),
        ("postgresql://me:secret@secret@host/db", r"'postgresql://\*\*\*@host/db': in a password, write @ as %40"),
        ("postgresql://me:secret@se/cret@host/db", r"'postgresql://\*\*\*@host/db': in a password, write @ as %40"),
        ("sqlite://store.db", "needs three slashes"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("sqlite:///store.db?mode=ro", "not supported for SQLite"),
    ],
)
def test_invalid_addresses_are_refused(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_address(address)
    assert "secret" not in str(caught.value)


def test_postgresql_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match=r"pip install 'psycopg\[binary\]'"):
        open_database("postgresql://me@127.0.0.1/db", create=True)


def test_postgresql_that_cannot_be_reached() -> None:
    pytest.importorskip("psycopg", reason="the extra prunefront[postgresql] is not installed")
    for address in ("postgresql://me:secret@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?password=secret"):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1") as caught:
            open_database(address, create=True)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


# --- several processes ------------------------------------------------------------------------------------


def _create(url: str, start: Any, answers: Any) -> None:
    start.wait()
    try:
        with Store.open(url, create=True) as store:
            answers.put(str(len(store.studies())))
    except Exception as error:
        answers.put(repr(error))


@both_engines
def test_concurrent_processes_create_one_database(
    engine: str, url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if engine == "postgresql":
        url = request.getfixturevalue("new_postgresql")("template0")
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(4, timeout=PATIENCE), context.Queue()
    workers = [context.Process(target=_create, args=(url, start, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    results = [answers.get(timeout=PATIENCE) for _ in workers]
    for worker in workers:
        worker.join(timeout=PATIENCE)
    assert results == ["0"] * 4
    assert list(files(tmp_path)) == (["store.db"] if engine == "sqlite" else [])


def _read(url: str, met: Any, stop: Any, answers: Any) -> None:
    """Read until told to stop; answer how often, or what went wrong."""
    rounds, seen, had_some = 0, 0, False
    try:
        with Store.open(url) as store:
            study = store.study("digits")
            while not stop.is_set() or rounds == 0:
                evaluations = store.evaluations(study)
                assert [e.number for e in evaluations] == list(range(len(evaluations))), "a hole"
                assert len(evaluations) >= seen, "an evaluation vanished"
                seen = len(evaluations)
                assert bool(store.front(study)) >= bool(evaluations)
                rounds += 1
                if evaluations and not had_some:
                    had_some = True
                    met.release()
        answers.put(rounds)
    except Exception as error:
        answers.put(repr(error))


def test_readers_see_complete_records_during_a_write(
    url: str, make_spec: MakeSpec, make_evaluation: MakeEvaluation
) -> None:
    context = multiprocessing.get_context("spawn")
    met, stop, answers = context.Semaphore(0), context.Event(), context.Queue()
    with Store.open(url, create=True) as store:
        study = store.create_study(make_spec())
        readers = [context.Process(target=_read, args=(url, met, stop, answers)) for _ in range(3)]
        for reader in readers:
            reader.start()
        number, waiting, deadline = 0, len(readers), time.monotonic() + PATIENCE
        # Until every reader has met at least one evaluation, so that all did read while we wrote.
        while number < 300 or (waiting and time.monotonic() < deadline):
            flops, top1 = 400_000 + number * 7919 % 400_000, (number * 37 % 300) / 300
            assert store.record(study, make_evaluation(f"1:{(number + 1) / 100_000}", flops, top1))
            number += 1
            if waiting and met.acquire(block=False):
                waiting -= 1
        stop.set()
        rounds = [answers.get(timeout=PATIENCE) for _ in readers]
        for reader in readers:
            reader.join(timeout=PATIENCE)
        assert not waiting
        assert all(isinstance(r, int) and r > 0 for r in rounds), rounds
        assert len(store.evaluations(study)) == number


def test_two_writing_processes_lose_nothing(url: str, make_spec: MakeSpec, make_evaluation: MakeEvaluation) -> None:
    code = (
        "import sys\n"
        "from results import Evaluation\n"
        "from results.store import Store\n"
        "from spaces import PruningSchedule\n"
        "with Store.open(sys.argv[1]) as store:\n"
        "    study = store.study('digits')\n"
        "    for i in range(100):\n"
        "        schedule = PruningSchedule.of([(3, (i + 1) / 1000)])\n"
        "        assert store.record(study, Evaluation(schedule, 5, 0.5, top1=0.5, loss=1.0))\n"
    )
    with Store.open(url, create=True) as store:
        study = store.create_study(make_spec())
        other = subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True)
        for i in range(100):
            assert store.record(study, make_evaluation(f"4:{(i + 1) / 1000}"))
        assert other.communicate(timeout=PATIENCE)[1] == ""
        assert other.returncode == 0
        assert [e.number for e in store.evaluations(study)] == list(range(200))


@pytest.mark.parametrize("damage", ["truncated", "malformed"])
def test_a_database_that_looks_damaged_during_a_checkpoint_is_checked_again(
    url: str, tmp_path: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """While the last connection of another process moves the log into the file, a reader may see half of it."""
    with Store.open(url, create=True) as store:
        store.create_study(make_spec())
    path, waits = tmp_path / "store.db", 0
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else whole[:100].ljust(len(whole), b"\xff"))

    def wait(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 2:  # the checkpoint ends
            path.write_bytes(whole)

    monkeypatch.setattr(time, "sleep", wait)
    with Store.open(url) as store:
        assert [study.name for study in store.studies()] == ["digits"]
    assert waits == 2
