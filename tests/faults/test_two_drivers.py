"""Two drivers search one study at once, and one of them is killed for good."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from results.store.store import Store
from tests.faults.processes import PATIENCE, arguments, family, running, wait_until

TRIALS = 120


def recorded_by(path: Path) -> dict[int, int]:
    """Return how many evaluations each driver has recorded."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as connection:
        query = "SELECT driver_id, count(*) FROM evaluations WHERE state <> 'running' GROUP BY driver_id"
        return dict(connection.execute(query).fetchall())


@pytest.mark.slow
def test_they_share_the_work_and_the_one_that_is_left_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    url = f"sqlite:///{path}"
    command = ["-m", "search", *arguments(url, TRIALS, "--group", "2", "--workers", "1")]
    with running(command, tmp_path) as (one, _), running(command, tmp_path) as (other, err):
        wait_until(lambda: len(recorded_by(path)) == 2, other, err)
        orphans = family(one)
        one.kill()
        one.wait()
        assert other.wait(PATIENCE) == 0, err.read_text()
        for orphan in orphans:
            with suppress(psutil.NoSuchProcess):
                orphan.kill()
    with Store.open(url) as store:
        study = store.study("s")
        assert (study.done + study.failed, study.running, study.queued) == (TRIALS, 0, 0)
        assert len({e.hash for e in store.evaluations(study)}) == TRIALS
        assert len(store.drivers(study)) == 2
    assert all(count > 0 for count in recorded_by(path).values())
