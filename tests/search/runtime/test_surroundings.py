"""A real search in the surroundings of a batch system or a container."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE


@pytest.mark.slow
def test_a_search_runs_with_a_long_tmpdir_without_a_home_without_utf8_and_from_a_path_with_spaces(
    tmp_path: Path,
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    settings = {
        "TMPDIR": str(long),
        "HOME": "/proc/none",
        "PYTHONIOENCODING": "latin-1",
        "RAY_ADDRESS": "192.0.2.1:6379",  # reserved for documentation: nobody answers
        "http_proxy": "http://127.0.0.1:9",
    }
    environment = tmp_path / "with a space, größe"
    environment.symlink_to(sys.prefix)  # as if it had been installed there
    command = [str(environment / "bin" / "python"), "-m", "search"]
    search = [*command, "search", "--model", "vim_nano", "--data", "embedded", "--images", "20"]
    search += ["--confirm-images", "0"]
    search += ["--flops-budget", "0.5:0.8", "--trials", "2", "--workers", "1", "--sampler", "random"]
    search += ["--study", "größe"]
    database = ["--db", f"sqlite:///{tmp_path}/studies.db"]
    done = subprocess.run([*search, *database], env=os.environ | settings, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert b"RAY_ADDRESS=192.0.2.1:6379 is ignored" in done.stderr
    assert "95 % interval" in done.stdout.decode("latin-1")
    assert list(long.iterdir()) == []
    listed = subprocess.run(
        [*command, "studies", *database, "--format", "json"], env=os.environ | settings, capture_output=True
    )
    (study,) = json.loads(listed.stdout)
    assert (study["study"], study["done"]) == ("größe", 2)
