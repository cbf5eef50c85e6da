"""A disk that fills up during a search: a small real tmpfs, and a real store."""

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from results import StudySpec
from results.store.database import free_bytes
from results.store.store import Store
from search.driver.patience import Patience
from search.driver.records import StudyRecords
from search.driver.search_setup import SearchSetup
from search.driver.spool import Spool
from tests.search import fakes
from tests.search.conftest import search_setup as search_setup  # a fixture


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four mebibytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_the_error_names_the_disk_and_its_free_bytes_and_a_resume_takes_the_spool_in(
    disk: Path, tmp_path: Path, search_setup: SearchSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = disk / "s.db"
    url = f"sqlite:///{path}"
    notes: list[str] = []
    with Store.open(url, create=True) as store:
        spec = StudySpec(**search_setup.spec(), dense_top1=0.9, dense_loss=0.1, dense_latency_ms=1.0)
        study = store.create_study(spec)
        spool = Spool(study, url)
        kept = fakes.MemoryRecords()
        fakes.drive(fakes.searcher(kept, trials=60))
        driver = store.enter(study, {})
        records = StudyRecords(store, study, driver, spool, Patience(0.5, note=notes.append))
        records.claim([replace(evaluation, state="running") for evaluation in kept.evaluations], trials=60)
        for number, evaluation in enumerate(kept.evaluations):
            if number == 20:
                (disk / "ballast").write_bytes(b"0" * (free_bytes(str(path)) or 0))
            assert records.record(evaluation)
        spool.close()
        error = str(records.given_up())
    assert records.patience.error is not None
    assert str(path) in error
    assert "bytes are free on its disk" in error
    assert "free some space" in error or "check its disk" in error
    assert len(notes) == 1
    assert notes[0].startswith("warning: database ")
    assert spool.lost == 0
    assert spool.path is not None
    assert spool.path.parent == tmp_path  # beside the database there is no room
    assert 20 <= 60 - spool.count < 60

    (disk / "ballast").unlink()
    with Store.open(url) as store:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        study = store.study(spec.name)
        store.leave(study, driver)
        assert study.done + study.stopped == 60 - spool.count
        Spool(study, url).take_in(store, notes.append)
        assert {e.hash for e in store.evaluations(study, done_only=False)} == {e.hash for e in kept.evaluations}
    assert not spool.path.exists()
