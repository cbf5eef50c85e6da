"""A search from its settings to its end: Ray Tune runs the candidates, the driver records them.

The store is the truth. Ray's and Tune's files lie in a temporary folder that is thrown away, so resuming
reads SQL and JSON only.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler

from results import Evaluation
from search.config import SearchConfig
from search.driver.lease import Lease
from search.driver.outcome import SearchOutcome
from search.driver.progress import SearchProgress, Snapshot
from search.driver.records import ClaimedRecords, PatientRecords
from search.driver.search_setup import SearchSetup, check_dense, open_setup, open_study
from search.driver.searcher import ScheduleSearcher
from search.driver.spool import Spool
from search.driver.study_state import StudyState, raced_objective
from search.driver.tracking import Tracker, Tracking
from search.evaluation.evaluator import DenseAnswers
from search.evaluation.protocol import DenseResult, WorkerSetup
from search.evaluation.worker import EvaluationTrainable
from search.models import evaluation_fingerprint
from search.runtime.fingerprint import check_nodes, software
from search.runtime.ray_session import available_cpus, check_address, ray_session
from search.runtime.scratch import scratch_folder
from search.runtime.signals import Interruption
from search.runtime.watchdog import TrialTimeout
from search.samplers.base import Sampler
from search.samplers.registry import make_sampler
from spaces import PruningSchedule
from spaces.errors import DatabaseError, SearchError, UsageError
from spaces.published import starting_schedules


class PatientScheduler(FIFOScheduler):
    """Runs candidates as they come, and leaves each to the worker that is starting for it.

    Tune's own would hand it to the first worker that is free and end the starting one; where evaluations
    are shorter than a start, a worker that died would then never be replaced.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none: Tune then starts all that are waiting, in order."""


def run_search(
    config: SearchConfig, url: str, progress: SearchProgress, trackers: Sequence[Tracker] = ()
) -> SearchOutcome:
    """Run or resume a study until it has `config.trials` evaluations, the time is up, or a signal comes.

    Args:
        config: the settings.
        url: the database.
        progress: told after each evaluation.
        trackers: told of the start, each evaluation, and the end.

    Raises:
        UsageError, CheckpointError, DataError, StoreError: something the settings name is wrong; nothing
            has been written then.
        SearchError: too many evaluations failed in a row, or Ray did.
    """
    if config.ray_address is not None:
        check_address(config.ray_address)  # before anything is opened or written
    began = time.monotonic()
    stopping: list[ScheduleSearcher] = []

    def stop() -> None:
        for searcher in stopping:
            searcher.halt("a signal")
        progress.note("stopping: what is under way will be recorded; once more to stop at once")

    def lose() -> None:
        for searcher in stopping:
            searcher.halt("the database is gone")

    with (
        scratch_folder() as scratch,
        Interruption(stop, lambda: shutil.rmtree(scratch, ignore_errors=True)) as interruption,
    ):
        subject = open_setup(config)
        store, study, dense = open_study(subject, url)
        spool = Spool(study, url)
        with store, closing(spool), Lease(store, study) as lease:
            if warning := check_dense(dense, subject):
                progress.note(warning)
            spool.take_in(store, progress.note)
            study, recorded = store.study(config.study), store.evaluations(study, done_only=False)
            with Tracking(trackers, study, partial(store.evaluation, study), progress.note) as tracking:
                records = PatientRecords(
                    ClaimedRecords(store, study, lease.driver, max((e.number for e in recorded), default=-1)),
                    spool,
                    patience=config.db_patience,
                    lost=lose,
                    hurry=lambda: interruption.signal is not None,
                    note=progress.note,
                    recorded=tracking.recorded,
                )
                dense_score = store.confirmation(study, PruningSchedule().hash)
                standing = StudyState(subject.objectives, subject.model.layout, recorded, dense_score)
                sampler = _sampler(subject, recorded, config.seed + lease.driver.others)

                def observe(snapshot: Snapshot) -> None:
                    progress.update(snapshot)
                    tracking.observe(snapshot)

                searcher = ScheduleSearcher(
                    subject.space,
                    sampler,
                    flops=subject.table.flops,
                    dense_flops=subject.table.dense,
                    trials=config.trials,
                    standing=standing,
                    records=records,
                    starts=starting_schedules(subject.space),
                    seed=config.seed + lease.driver.others,
                    brood=config.group,
                    race=subject.raced is not None,
                    confirm=subject.confirm.images > 0,
                    timeouts=_timeouts(subject, dense),
                    deadline=lambda: config.seconds is not None and time.monotonic() - began > config.seconds,
                    observe=observe,
                    note=progress.note,
                )
                outcome = SearchOutcome(study, f"{len(recorded)} evaluations are recorded")
                if not searcher.complete and interruption.signal is None:
                    stopping.append(searcher)
                    _search(subject, searcher, dense, scratch, interruption, outcome)
                try:
                    outcome.study = records.study()
                except DatabaseError:
                    raise records.farewell() from None
                if searcher.error is not None:
                    raise searcher.error
                outcome.exit_code = interruption.exit_code
                tracking.outcome = outcome
    failed = outcome.study.failed
    if failed and not outcome.study.done and not outcome.exit_code:
        raise SearchError(f"study {config.study!r}: all {failed} evaluations failed; see `prunefront front --all`")
    return outcome


def _sampler(subject: SearchSetup, recorded: list[Evaluation], seed: int) -> Sampler:
    config = subject.config
    sampler = make_sampler(
        config.sampler, subject.space, subject.objectives, seed=seed, trials=config.trials, recorded=len(recorded)
    )
    sampler.restore(recorded)
    return sampler


def _timeouts(subject: SearchSetup, dense: DenseAnswers) -> tuple[float, float]:
    """Return the longest seconds of a candidate, and of a confirmation."""
    timeout = subject.config.timeout(dense.metrics.seconds)
    # A worker's first confirmation runs the dense model as well.
    return timeout, 2 * timeout * max(1.0, subject.confirm.images / subject.images.images)


def _search(
    subject: SearchSetup,
    searcher: ScheduleSearcher,
    dense: DenseAnswers,
    scratch: Path,
    interruption: Interruption,
    outcome: SearchOutcome,
) -> None:
    config = subject.config
    setup = WorkerSetup(
        model=config.model,
        checkpoint=config.checkpoint,
        data=config.data,
        images=subject.images,
        confirm=subject.confirm,
        batch_size=config.batch_size,
        fingerprint=evaluation_fingerprint(subject.model, subject.data, subject.confirm),
        threads=config.cpus_per_trial,
        gpu=config.gpus_per_trial > 0,
        folder=str(Path.cwd()),
        dense=DenseResult(asdict(replace(dense.metrics, tally=None)), dense.answers.numpy()),
        prefix_cache=config.prefix_cache_bytes,
        race_error=config.race_error,
        agreement=raced_objective(subject.objectives) == "agreement",
        latency="latency" in subject.objectives,
    )
    cpus = (config.workers or max(1, available_cpus() // config.cpus_per_trial)) * config.cpus_per_trial
    with ray_session(scratch, cpus=cpus, address=config.ray_address):
        if config.ray_address is not None:
            check_nodes(software())
        workers = _workers(config)
        resources = {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial}
        trainable = tune.with_resources(tune.with_parameters(EvaluationTrainable, setup=setup), resources)
        tuner = Tuner(
            trainable,
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=PatientScheduler(),  # type: ignore[no-untyped-call]
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="search",
                storage_path=str(scratch / "tune"),
                verbose=0,
                failure_config=FailureConfig(max_failures=0),  # the searcher knows when to try again
                callbacks=[TrialTimeout(searcher)],
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        if interruption.signal is not None:
            searcher.halt("a signal")
        started = time.monotonic()
        tuner.fit()
        outcome.seconds = time.monotonic() - started
    outcome.ending, outcome.evaluated = searcher.ending, searcher.evaluated
    outcome.overheads, outcome.forwards = searcher.overheads, searcher.forwards


def _workers(config: SearchConfig) -> int:
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
