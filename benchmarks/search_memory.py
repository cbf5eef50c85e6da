"""The most memory that a search takes: the driver, its workers and Ray together, shared pages counted once.

python benchmarks/search_memory.py [--trials 24] [--images 500]
"""

import argparse
import subprocess
import sys
import tempfile
import time

import psutil

EVERY_SECONDS = 0.5


def proportional_bytes(root: psutil.Process) -> int:
    """Return the proportional set size of a process and all its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def main() -> None:
    """Run one search as a user would and print its peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "search", "search", "--model", "vim_nano", "--data", "embedded"]
        command += ["--flops-budget", "0.9", "--trials", str(options.trials), "--images", str(options.images)]
        command += ["--study", "memory", "--db", f"sqlite:///{folder}/memory.db"]
        run = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0
        while run.poll() is None:
            peak = max(peak, proportional_bytes(run))
            time.sleep(EVERY_SECONDS)
    if run.returncode:
        sys.exit(f"the search ended with exit code {run.returncode}")
    print(f"vim_nano on embedded, {options.trials} evaluations of {options.images} images: {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
