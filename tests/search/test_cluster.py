"""A search on a cluster of several nodes, one of which dies."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from results import Evaluation
from results.store.store import Store
from tests.patience import PATIENCE
from tests.search.clusters import Cluster, cluster, kill

TRIALS = 40

# Ray puts the interpreter's path unquoted into a shell. A search quotes it for the Ray that it starts; the nodes of a
# cluster are started by `ray start`.
pytestmark = pytest.mark.skipif(
    shlex.quote(sys.executable) != sys.executable, reason="`ray start` starts no worker from a path with spaces"
)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with cluster(2) as started:
        yield started


def search(url: str, *more: str) -> list[str]:
    settings = ["--model", "vim_nano", "--data", "embedded", "--images", "40", "--batch-size", "10", "--group", "1"]
    rest = ["--flops-budget", "0.8", "--trials", str(TRIALS), "--study", "s", "--confirm-images", "0", "--db", url]
    return ["search", *settings, *rest, "--format", "csv", *more]


def evaluations(url: str) -> list[Evaluation]:
    if not Path(url.removeprefix("sqlite:///")).exists():
        return []
    with Store.open(url) as store:
        return [e for study in store.studies() for e in store.evaluations(study, done_only=False)]


@pytest.mark.slow
def test_a_node_with_another_version_is_refused_and_costs_no_candidate(two_nodes: Cluster, tmp_path: Path) -> None:
    """The driver claims to have a version that the nodes do not have."""
    url = f"sqlite:///{tmp_path / 's.db'}"
    program = (
        "import sys, search.driver.tune_run as driver, search.cli\n"
        "own = driver.software\n"
        "driver.software = lambda: own() | {'prunefront': '0.0'}\n"
        "sys.exit(search.cli.run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *search(url, "--ray-address", two_nodes.address)]
    done = subprocess.run(command, env=two_nodes.environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: node ")
    assert last.endswith("there and 0.0 at the driver; make them the same and run the command again")
    assert "Traceback" not in done.stderr
    assert evaluations(url) == []


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing(two_nodes: Cluster, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    process = subprocess.Popen(
        [sys.executable, "-m", "search", *search(url, "--ray-address", two_nodes.address)],
        env=two_nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while len(evaluations(url)) < 4:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the evaluations did not come"
            time.sleep(0.05)
        workers = [p for p in psutil.Process(two_nodes.nodes[0].pid).children(recursive=True) if "ray::" in p.name()]
        assert workers, "the node that is to die works"
        kill(two_nodes.nodes[0])
        before = len(evaluations(url))
        assert before < TRIALS, "it died while there was work"
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        kill(process)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert out.startswith("schedule,hash,")
    recorded = evaluations(url)
    assert len({e.hash for e in recorded}) == len(recorded) == TRIALS
    assert {e.state for e in recorded} <= {"done", "stopped"}
