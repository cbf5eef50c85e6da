"""A driver that is killed with SIGKILL again and again: a short run of `benchmarks/faults.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_a_resume_reaches_n_and_loses_and_doubles_nothing() -> None:
    """The benchmark checks this itself, and exits with 1 if a check fails."""
    arguments = ["--rounds", "3", "--trials", "60", "--seed", "1", "--longest", "1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 60 of 60 recorded" in done.stdout
