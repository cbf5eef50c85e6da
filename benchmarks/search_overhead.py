"""What a search costs beside the model's forward passes, per evaluation: the median over a 40-trial run.

An evaluation's overhead is the time from the moment its slot was free (the evaluation before it in that
slot was recorded) until it was recorded itself, less its forward passes. So it covers asking the sampler,
Tune and its messages, setting the schedule, normalising the images, the loss, and writing to the data
base. The first evaluation of each slot also waits for its worker to start and load; it is given apart.

    python benchmarks/search_overhead.py [--trials 40] [--images 200] [--workers W]
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console

from search.config import SearchConfig
from search.progress import SearchProgress
from search.runner import available_cpus, run_search


def main() -> None:
    """Run one search and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=available_cpus())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = SearchConfig(
            model="vim_nano",
            study="overhead",
            data="embedded",
            flops_budget="0.9",
            trials=options.trials,
            images=options.images,
            workers=options.workers,
        )
        began = time.perf_counter()
        with SearchProgress("search", Console(stderr=True)) as progress:
            outcome = run_search(config, f"sqlite:///{Path(folder) / 'overhead.db'}", progress)
        wall = time.perf_counter() - began
    first, later = outcome.overheads[: options.workers], outcome.overheads[options.workers :]
    print(f"vim_nano on embedded, {options.images} images an evaluation, {options.workers} workers of 1 CPU")
    print(f"evaluations                       {outcome.evaluated}")
    print(f"overhead an evaluation, median    {1e3 * median(later):.0f} ms")
    print(f"overhead an evaluation, p90       {1e3 * quantiles(later, n=10)[-1]:.0f} ms")
    print(f"first in each slot (start, load)  {median(first):.1f} s")
    print(f"whole run, from model to end      {wall:.1f} s")


if __name__ == "__main__":
    main()
