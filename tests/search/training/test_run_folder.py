"""A folder is locked while a training runs, and removed if it wrote nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from search.training.run_folder import held_folder
from spaces.errors import TrainingError, UsageError

HOLDER = """
import sys, time
from pathlib import Path
from search.training.run_folder import held_folder
with held_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match=r"out: another training is running there; wait for it"),
            held_folder(out),
        ):
            pytest.fail("both are in")
        assert out.is_dir()
        holder.kill()
    with held_folder(out):
        pass


def test_new_folders_are_removed_if_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with held_folder(tmp_path / "mine" / "new" / "out"):
        assert (tmp_path / "mine" / "new" / "out").is_dir()
    assert list((tmp_path / "mine").iterdir()) == []
    with held_folder(tmp_path / "mine"), held_folder(tmp_path / "mine" / "out"):
        (tmp_path / "mine" / "out" / "last.pt").touch()
    assert [path.name for path in (tmp_path / "mine" / "out").iterdir()] == ["last.pt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(TrainingError, match="the folder cannot be made"), held_folder(out):
            pytest.fail("there is none")
