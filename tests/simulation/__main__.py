"""Plays many histories, and prints the seeds of those that end badly: `python -m tests.simulation --help`."""

import argparse
import multiprocessing
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from tests.simulation.races import RACES
from tests.simulation.world import play, template


def main() -> int:
    """Return 1 if a history ended badly."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this history alone, and print what happens in it")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many histories (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--stop", action="store_true", help="stop at the first one that ends badly")
    parser.add_argument("--race", choices=sorted(RACES), help="put back a fault that was mended")
    given = parser.parse_args()
    race = RACES[given.race]() if given.race else nullcontext()
    with race, tempfile.TemporaryDirectory(dir=memory()) as folder:
        if given.seed is not None:
            print("\n".join(play(given.seed, Path(folder)).trace))
            return 0
        began = time.monotonic()
        seeds = range(given.first, given.first + given.seeds)
        failed = play_all(seeds, Path(folder), given.workers, given.stop)
    count = 1 + max(failed) - given.first if given.stop and failed else given.seeds
    print(f"{count} histories, {len(failed)} ended badly, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def memory() -> str | None:
    """Return a folder in memory, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def play_all(seeds: range, folder: Path, workers: int, stop: bool = False) -> dict[int, str]:
    """Play histories in several processes; return why some of them ended badly, by seed."""
    template()  # before the fork
    failed: dict[int, str] = {}
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        jobs = ((seed, folder) for seed in seeds)
        for seed, failure in pool.imap(_played, jobs, chunksize=10):
            if failure is not None:
                failed[seed] = failure
                print(f"seed {seed}: {failure}", file=sys.stderr, flush=True)
                if stop:
                    break
    return failed


def _played(job: tuple[int, Path]) -> tuple[int, str | None]:
    seed, folder = job
    try:
        play(seed, folder)
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"
    return seed, None


if __name__ == "__main__":
    sys.exit(main())
