"""Ray Tune runs the trials that a searcher suggests, in a temporary folder that is thrown away."""

import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler

from search.config import SearchConfig
from search.driver.searcher import ScheduleSearcher
from search.evaluation.protocol import WorkerSetup
from search.evaluation.worker import EvaluationTrainable
from search.runtime.fingerprint import check_nodes, software
from search.runtime.limits import available_cpus
from search.runtime.ray_session import ray_session
from search.runtime.watchdog import TrialTimeout
from spaces.errors import UsageError


class InOrderScheduler(FIFOScheduler):
    """Starts trials in order, and leaves each to the worker that is starting for it.

    Tune's own scheduler would hand it to the first free worker and end the starting one. Where evaluations are
    shorter than a start, a worker that died would then never be replaced.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none, so that Tune starts all waiting trials in order."""


def run_trials(searcher: ScheduleSearcher, config: SearchConfig, worker: WorkerSetup, scratch: Path) -> float:
    """Run trials until the searcher suggests no more.

    Args:
        searcher: suggests them and takes their results.
        config: of the search.
        worker: what each worker is set up with.
        scratch: folder for the files of Ray and Tune.

    Returns:
        The seconds that Tune took.

    Raises:
        SearchError: Ray cannot be started or reached, or a node of the cluster differs from the driver.
        UsageError: no evaluation fits on what Ray has.
    """
    cpus = (config.workers or max(1, available_cpus() // config.cpus_per_trial)) * config.cpus_per_trial
    with ray_session(scratch, cpus=cpus, address=config.ray_address):
        if config.ray_address is not None:
            check_nodes(software())
        tuner = _tuner(searcher, config, worker, scratch)
        started = time.monotonic()
        tuner.fit()
        return time.monotonic() - started


def _tuner(searcher: ScheduleSearcher, config: SearchConfig, worker: WorkerSetup, scratch: Path) -> Tuner:
    resources = {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial}
    return Tuner(
        tune.with_resources(tune.with_parameters(EvaluationTrainable, setup=worker), resources),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=InOrderScheduler(),  # type: ignore[no-untyped-call]
            num_samples=-1,
            max_concurrent_trials=count_workers(config),
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="search",
            storage_path=str(scratch / "tune"),
            verbose=0,
            failure_config=FailureConfig(max_failures=0),  # the searcher decides what runs again
            callbacks=[TrialTimeout(searcher.trials)],
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def count_workers(config: SearchConfig) -> int:
    """Return how many evaluations run at a time on the Ray that is connected.

    Raises:
        UsageError: not even one fits.
    """
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = int(found.get("CPU", 0.0) // config.cpus_per_trial)
    if config.gpus_per_trial > 0:
        fits = min(fits, int(found.get("GPU", 0.0) / config.gpus_per_trial + 1e-9))
    if fits < 1:
        raise UsageError(
            f"an evaluation asks for {config.cpus_per_trial} CPUs and {config.gpus_per_trial:g} GPUs, but Ray has "
            f"{found.get('CPU', 0.0):g} and {found.get('GPU', 0.0):g}: lower --cpus-per-trial or --gpus-per-trial"
        )
    return min(config.workers or fits, fits)
