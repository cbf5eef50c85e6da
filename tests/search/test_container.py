"""A search as the image of docs/cluster/Dockerfile runs it: an unknown user, a read-only root, no HOME."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
SEARCH = (
    "search --model vim_nano --data embedded --flops-budget 0.6 --trials 3 --images 50 --confirm-images 0 "
    "--workers 1 --study s"
)
UNSHARE = ["unshare", "-r", "-m"]
# Within a mount namespace: one folder to write to, everything else read-only. Then a user without a name.
CONTAINER = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mount -t tmpfs -o size=64m tmpfs /dev/shm
while read -r _ _ _ _ point _; do
  case $point in
    "$1" | /proc | /proc/* | /sys | /sys/* | /dev | /dev/*) ;;
    *) mount -o remount,bind,ro "$point" ;;
  esac
done < /proc/self/mountinfo
cd "$1"
export TMPDIR="$1"
shift
exec unshare -U --map-user=54321 --map-group=54321 "$@"
"""


@pytest.mark.slow
def test_an_unknown_user_with_a_read_only_root(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    program = (
        "import os, sys; from pathlib import Path; from search.cli import run\n"
        "assert os.getuid() == 54321 and not os.access(sys.argv[1], os.W_OK)\n"
        "for command in sys.argv[2:]:\n"
        "    assert run(command.split()) == 0, command\n"
    )
    command = [
        *UNSHARE,
        "bash",
        "-c",
        CONTAINER,
        "container",
        str(tmp_path),
        sys.executable,
        "-c",
        program,
        str(ROOT),
    ]
    command += ["doctor", SEARCH, "report --study s --out r.html"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "s: 3 evaluations are recorded: 3 done" in done.stderr
