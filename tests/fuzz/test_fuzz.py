"""The runner itself, and the inputs that every change must pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_every_reader_reads_or_refuses(tmp_path: Path) -> None:
    done = python("-m", "tests.fuzz", "--inputs", "20000", "--save", str(tmp_path / "found"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["inputs"] > 19_900
    assert not list(tmp_path.iterdir()), "and leaves nothing behind"


FAULTS = """
import sys
from pathlib import Path
from tests.fuzz.runner import bounded, problem_with, watched
from tests.fuzz.targets import Target
from spaces.errors import DataError

kept = []

def raises(content): {}["x"]
def refuses(content): raise DataError("broken.png: not an image")
def says_nothing(content): raise DataError("")
def hangs(content):
    while True:
        try:
            sum(range(1000))
        except Exception:
            pass
def hoards(content): kept.append(b"x" * (3 * 2**29))
def writes_outside(content): Path("../outside").write_text("changed")

reads = (raises, refuses, says_nothing, hangs, hoards, writes_outside)
with bounded():
    try:
        with watched(Path(sys.argv[1])):
            for read in reads:
                problem = problem_with(Target(read.__name__, 1, lambda: [b""], None, read), b"")
                print(read.__name__, (problem or "None").splitlines()[-1], sep=": ")
    except AssertionError as error:
        print(error)
"""


def test_the_runner_sees_tracebacks_hangs_hoards_and_files_outside(tmp_path: Path) -> None:
    found = python("-c", FAULTS, str(tmp_path), cwd=tmp_path).stdout.splitlines()
    assert found[:3] == ["raises: KeyError: 'x'", "refuses: None", "says_nothing: AssertionError: no message"]
    assert found[3].startswith("hangs: ")
    assert found[3].endswith("more than 5 s")
    assert found[4].startswith("hoards: needed 1")
    assert found[5:] == ["writes_outside: None", "a file outside was changed"]
