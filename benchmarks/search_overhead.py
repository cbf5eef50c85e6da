"""What a search costs beside the model's forward passes, per evaluation, and how busy its workers are.

The overhead of a group of candidates is the time from when its slot became free (the group before it in that slot was
recorded) until it was recorded itself, less its forward passes, divided by its candidates. It covers asking the
sampler, Tune and its messages, setting the schedule, normalising the images, the loss, and writing to the database.
The first group of each slot also waits for its worker to start, and is shown separately. The utilisation is the share
of forward passes in the time of the slots, after that start.

    python benchmarks/search_overhead.py [--trials 80] [--images 200] [--workers W] [--group N] [--sampler K]
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console

from search.config import SearchConfig
from search.driver.progress import SearchProgress
from search.driver.runner import run_search
from search.runtime.limits import available_cpus


def main() -> None:
    """Run one search and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=available_cpus())
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--sampler", default="gp")
    parser.add_argument("--race-error", type=float, default=0.05)
    parser.add_argument("--model", default="vim_nano")
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="embedded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = SearchConfig(
            model=options.model,
            checkpoint=options.checkpoint,
            study="overhead",
            data=options.data,
            flops_budget="0.9",
            trials=options.trials,
            images=options.images,
            workers=options.workers,
            group=options.group,
            sampler=options.sampler,
            race_error=options.race_error,
            confirm_images=0,
        )
        began = time.perf_counter()
        with SearchProgress("search", Console(stderr=True)) as progress:
            outcome = run_search(config, f"sqlite:///{Path(folder) / 'overhead.db'}", progress)
        wall = time.perf_counter() - began
    started = options.workers * options.group
    first, later = outcome.overheads[:started], outcome.overheads[started:]
    busy = sum(outcome.forwards[started:])
    print(f"{options.model} on {options.data}, {options.images} images, {options.workers} workers of 1 CPU")
    print(f"sampler {options.sampler}, groups of {options.group}")
    print(f"evaluations                       {outcome.evaluated}")
    print(f"forward passes, mean              {busy / len(later):.2f} s")
    print(f"overhead an evaluation, median    {1e3 * median(later):.0f} ms")
    print(f"overhead an evaluation, p90       {1e3 * quantiles(later, n=10)[-1]:.0f} ms")
    print(f"utilisation of the workers        {busy / (busy + sum(later)):.1%}")
    print(f"first in each slot (start, load)  {median(first) * options.group:.1f} s")
    print(f"whole run, from model to end      {wall:.1f} s")


if __name__ == "__main__":
    main()
