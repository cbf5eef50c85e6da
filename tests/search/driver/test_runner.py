"""Whole searches with a real Ray, each in a process of its own, as users run them."""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from results import Evaluation, Study
from results.records import Confirmation
from results.store.store import Store
from search.cli import run
from search.driver import tune_run
from search.evaluation.protocol import unpack
from spaces import PruningSchedule
from tests.patience import PATIENCE

SEARCH = ["search", "--model", "vim_nano", "--data", "embedded", "--images", "40"]
CONFIRM = ["--confirm-images", "80"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 's.db'}"


def command(url: str, trials: int, *more: str) -> list[str]:
    rest = ["--flops-budget", "0.8", "--workers", "2", "--trials", str(trials), "--study", "s", "--db", url]
    return [sys.executable, "-m", "search", *SEARCH, "--batch-size", "10", *rest, "--format", "json", *more]


def evaluations(url: str) -> list[Evaluation]:
    """Return the evaluations of study `s` so far; none if it has not begun."""
    if not Path(url.removeprefix("sqlite:///")).exists():
        return []
    with Store.open(url) as store:
        return [e for study in store.studies() for e in store.evaluations(study, done_only=False)]


def memory(process: subprocess.Popen[str]) -> int:
    """Bytes of a process and its descendants; what they share is counted once."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
    return total


def finish(url: str, trials: int, *more: str) -> tuple[list[dict[str, object]], str, int]:
    """Run a search to its end; return the printed front, stderr, and the peak of its memory."""
    process = subprocess.Popen(command(url, trials, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process))
        time.sleep(0.3)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out), err, peak


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses that others could connect to."""
    found = {
        connection.laddr.ip
        for one in processes
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found, "Ray's processes listen somewhere"
    return found


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


@contextmanager
def running(url: str) -> Iterator[subprocess.Popen[str]]:
    """A long search, yielded when three evaluations are recorded.

    Its processes listen on the loopback interface alone, and none of them may outlive the block.
    """
    arguments = command(url, 500, "--confirm-images", "0")
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    family: list[psutil.Process] = []
    try:
        wait_for(url, 3, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert {ip for ip in listening([*family, psutil.Process(process.pid)]) if not is_loopback(ip)} == set()
        yield process
        _, alive = psutil.wait_procs(family, timeout=PATIENCE)
        assert [p.name() for p in alive] == []
    finally:
        for one in [*family, process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def wait_for(url: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(evaluations(url)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the evaluations did not come"
        time.sleep(0.1)


def front_of(url: str) -> tuple[Study, list[Evaluation], Confirmation | None]:
    """Study `s`, its front, and the dense model's confirmed score."""
    with Store.open(url) as store:
        study = store.study("s")
        return study, store.front(study), store.confirmation(study, PruningSchedule().hash)


@pytest.mark.slow
def test_a_search_resumes_to_the_total_and_confirms_its_front(url: str) -> None:
    """Groups of three race; in the end each point of the front also has a score on more images."""
    more = [*CONFIRM, "--group", "3"]
    front, err, peak = finish(url, 9, *more)
    recorded = evaluations(url)
    assert len(recorded) == 9
    assert {row["hash"] for row in front} <= {e.hash for e in recorded}
    assert "Traceback" not in err
    assert "Warning" not in err
    assert 0 < peak < 5 * 2**30

    front, err, _ = finish(url, 14, *more)
    study, best, dense = front_of(url)
    counts = f"{study.done} done, {study.stopped} stopped early, 0 failed"
    assert f"14 evaluations are recorded: {counts}, 5 of them now" in err
    after = evaluations(url)
    assert [e.hash for e in after][:9] == [e.hash for e in recorded]
    assert [e.number for e in after] == list(range(14))
    assert len({e.hash for e in after}) == study.done + study.stopped == 14
    assert all(e.flops_ratio <= 0.8 for e in after)
    assert all(e.images == 40 if e.state == "done" else e.images < 40 and e.estimate is not None for e in after)
    assert all(e.outcomes is not None and e.seconds for e in after)
    assert all(unpack(e.outcomes or b"", e.images).mean() == pytest.approx(e.top1) for e in after)
    assert all(e.sampler_state for e in after if e.origin == "nsga2")

    assert [row["hash"] for row in front] == [e.hash for e in best]
    for e in best:
        assert e.confirmed is not None
        assert (e.images, e.confirmed.images, e.reported) == (40, 80, e.confirmed)
        assert e.confirmed.latency_ms and e.confirmed.latency_ratio
    assert dense is not None
    assert (dense.images, dense.agreement) == (80, 1.0)
    assert study.confirmed >= len(best) + 1


@pytest.mark.slow
def test_running_time_as_an_objective_and_images_that_the_search_does_not_see(url: str) -> None:
    more = ["--objective", "top1", "--objective", "latency", "--confirm-split", "rest", "--confirm-images", "30"]
    finish(url, 5, *more)
    study, best, dense = front_of(url)
    assert (study.done, study.stopped) == (5, 0)  # running times cannot be raced
    assert (study.spec.confirm_split, study.spec.confirm_images) == ("rest", 30)
    assert all(e.latency_ms and e.latency_ratio for e in evaluations(url))
    assert best
    assert all(e.confirmed is not None and e.confirmed.images == 30 for e in best)
    assert dense is not None


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_and_a_signal_records_what_is_under_way(url: str) -> None:
    """It runs again in another worker; then SIGTERM to the group, as `timeout` sends it, ends the search in order."""
    with running(url) as process:
        before = len(evaluations(url))
        family = psutil.Process(process.pid).children(recursive=True)
        next(p for p in family if "Trainable" in "".join(p.cmdline())).kill()
        wait_for(url, before + 8, process)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert out == ""  # Ray would tell of the death there
    assert "what is under way will be recorded" in err
    assert "Traceback" not in err
    recorded = evaluations(url)
    assert all(e.state in ("done", "stopped") for e in recorded)
    assert len({e.hash for e in recorded}) == len(recorded)


@pytest.mark.slow
def test_two_signals_end_it_at_once_and_nothing_recorded_is_lost(url: str) -> None:
    with running(url) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("once more to stop at once" in line for line in process.stderr)  # two that come as one are one
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, "")  # an orderly end would tell what is recorded
    before = evaluations(url)
    with Store.open(url) as store:
        study = store.study("s")
        assert study.done + study.stopped == len(before) >= 3
    finish(url, len(before) + 2, "--confirm-images", "0")
    after = evaluations(url)
    assert [e.hash for e in after][: len(before)] == [e.hash for e in before]
    assert len({e.hash for e in after}) == len(after) == len(before) + 2


@pytest.mark.slow
def test_weights_that_change_under_way_end_the_search(url: str) -> None:
    """The worker is refused, and no candidate is recorded as failed."""
    program = (
        "import sys, search.driver.search_setup as driver, search.cli\n"
        "own = driver.evaluation_fingerprint\n"
        "driver.evaluation_fingerprint = lambda *given: own(*given) | {'weights': '0' * 64}\n"
        "sys.exit(search.cli.run(sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", program, *command(url, 2, "--workers", "1")[3:]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: node {socket.gethostname()}: weights is ")
    assert "Traceback" not in done.stderr
    assert evaluations(url) == []


def test_a_complete_study_starts_nothing(
    study_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_run.ray, "init", lambda **options: pytest.fail("Ray was started"))
    with Store.open(study_url) as store:
        study = store.study("digits")
        for schedule in (PruningSchedule(), *(e.schedule for e in store.front(study))):
            store.confirm(
                study, Confirmation(schedule.hash, 0.9, 0.1, 1.0, 1000, 1.0, latency_ms=1.0, latency_ratio=1.0)
            )
    options = ["--flops-budget", "0.9", "--trials", "8", "--study", "digits", "--db", study_url, "--format", "json"]
    assert run([*SEARCH, *options]) == 0
    out, err = capfd.readouterr()
    assert len(json.loads(out)) >= 1
    assert "8 evaluations are recorded: 7 done, 0 stopped early, 1 failed, 0 of them now" in err


def test_a_complete_study_whose_front_is_not_confirmed_goes_on(
    study_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StartedError(Exception):
        pass

    def start(*settings: object, **options: object) -> None:
        raise StartedError

    monkeypatch.setattr(tune_run, "ray_session", start)
    options = ["--flops-budget", "0.9", "--trials", "8", "--study", "digits", "--db", study_url]
    with pytest.raises(StartedError):
        run([*SEARCH, *options])
