"""Searches in processes of their own, and checks that nothing of them is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from results import Evaluation
from results.store.store import Store
from tests.patience import PATIENCE

SETTINGS = ["--model", "vim_nano", "--data", "embedded", "--images", "40", "--batch-size", "10", "--workers", "2"]


def arguments(url: str, trials: int, *more: str) -> list[str]:
    """Arguments of a search over few images that confirms nothing."""
    rest = ["--flops-budget", "0.9", "--trials", str(trials), "--study", "s", "--db", url, "--confirm-images", "0"]
    return ["search", *SETTINGS, *rest, "--race-error", "0", *more]


@contextmanager
def running(command: list[str], folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Start a program in a folder; yield it and the file of its stderr. It and what it started end with the block."""
    err = folder / f"stderr-{len(list(folder.glob('stderr-*')))}"
    with err.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=file, text=True, env=os.environ | environment,
        )  # fmt: skip
    try:
        yield process, err
    finally:
        for one in [*family(process), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that descend from one."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], err: Path) -> None:
    """Wait while the process runs; fail if it ends, or if it takes far too long."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert process.poll() is None, err.read_text()
        assert time.monotonic() < deadline, err.read_text()
        time.sleep(0.5)


def evaluations(url: str) -> list[Evaluation]:
    """Return the evaluations of study `s` so far; none if it has not begun."""
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    with Store.open(url, create=True) as store:
        return [e for study in store.studies() for e in store.evaluations(study, done_only=False)]


def interrupted(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Signal a process, wait for its end, and check that none of its descendants is left ten seconds later."""
    descendants = family(process)
    process.send_signal(number)
    code = process.wait(PATIENCE)
    _, alive = psutil.wait_procs(descendants, timeout=PATIENCE)
    assert [one.name() for one in alive] == []
    return code
