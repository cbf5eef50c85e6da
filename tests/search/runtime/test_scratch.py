"""Folders of killed drivers are removed; those of living ones are not."""

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from search.runtime import scratch
from search.runtime.scratch import PREFIX, scratch_folder, sweep
from tests.patience import wait_for

PROGRAM = """
import subprocess, sys, time
from search.runtime.scratch import scratch_folder
with scratch_folder() as folder:
    work = "import time; print(flush=True); time.sleep(600)"
    helper = subprocess.Popen([sys.executable, "-c", work, f"{folder}/socket"], stdout=subprocess.PIPE)
    helper.stdout.readline()  # from its first moments /proc may not tell its command line yet
    print(folder, helper.pid, flush=True)
    time.sleep(600)
"""


def test_a_folder_lives_as_long_as_its_owner_and_is_swept_with_its_processes(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env={"TMPDIR": str(tmp_path)}
    )
    assert owner.stdout is not None
    name, helper = owner.stdout.readline().split()
    folder = Path(name)
    (tmp_path / f"{PREFIX}without-owner").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "owner").touch()
    assert sweep(tmp_path) == []
    assert folder.is_dir()
    owner.kill()
    owner.wait()
    assert sweep(tmp_path) == [folder]
    assert not folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {f"{PREFIX}without-owner", f"{PREFIX}link", "other"}
    stat = Path(f"/proc/{helper}/stat")
    wait_for(
        lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z",
        "the process outlived its folder",
    )


def test_it_is_not_swept_before_its_owner_has_locked_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another driver that starts at the same moment sweeps."""
    swept: list[Path] = []

    def flock(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            monkeypatch.setattr(scratch.fcntl, "flock", real)
            swept.extend(sweep(tmp_path))
        real(file, operation)

    real = fcntl.flock
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch.fcntl, "flock", flock)
    with scratch_folder() as folder:
        assert folder.is_dir()
        assert swept == []


def test_it_is_removed_in_the_end() -> None:
    with scratch_folder() as folder:
        assert folder.name.startswith(PREFIX)
        assert sweep(folder.parent) == [] or folder.exists()
    assert not folder.exists()
