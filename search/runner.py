"""A search from its settings to its end: Ray Tune runs the candidates, the driver records them.

The store is the truth. Ray's and Tune's files lie in a temporary folder that is thrown away, so resuming
reads SQL and JSON only.
"""

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

# Read by ray when it is imported: nothing on stderr, no files for each trial, no statistics sent home, and
# the signals left to us.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_AIR_NEW_OUTPUT="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000000",
    TUNE_PRINT_ALL_TRIAL_ERRORS="0",
    TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="1000000000",
)

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler

from results import Evaluation, Study
from results.records import Driver
from results.store import Store
from search.config import SearchConfig, parse_bytes
from search.evaluator import DenseAnswers
from search.fingerprint import check_nodes, software
from search.interruption import Interruption
from search.lease import ClaimedRecords, Lease
from search.progress import SearchProgress, Snapshot
from search.records import PatientRecords
from search.samplers import make_sampler
from search.scratch import scratch_folder
from search.searcher import ScheduleSearcher
from search.spool import Spool
from search.standing import Standing
from search.studies import Subject, check_dense, open_study, open_subject
from search.subject import fingerprint
from search.timeout import TrialTimeout
from search.tracking import Tracker, Tracking
from search.worker import DenseResult, EvaluationTrainable, WorkerSetup
from spaces import PruningSchedule
from spaces.errors import DatabaseError, SearchError, UsageError
from spaces.published import starting_schedules

OBJECT_STORE_BYTES = 80 * 2**20  # nothing large goes through it; Ray takes no less than 75 MiB
LONGEST_RAY_FOLDER = 40  # a socket's path holds 107 bytes, and Ray adds some 60 to its folder


@dataclass
class SearchOutcome:
    """How a search ended.

    Attributes:
        study: with its counts at the end.
        ending: why nothing more was suggested.
        exit_code: 0, or 130 or 143 after a signal.
        evaluated: evaluations that this run recorded.
        overheads, forwards: seconds of each of them outside of forward passes, and in them; see `ScheduleSearcher`.
        seconds: what Tune took, starting its workers included.
    """

    study: Study
    ending: str
    exit_code: int = 0
    evaluated: int = 0
    overheads: list[float] = field(default_factory=list)
    forwards: list[float] = field(default_factory=list)
    seconds: float = 0.0


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
        url: the data base.
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
        progress.note("stopping: what is under way will be recorded; once more to stop at once")
        for searcher in stopping:
            searcher.halt("a signal")

    def lose() -> None:
        for searcher in stopping:
            searcher.halt("the data base is gone")

    with (
        scratch_folder() as scratch,
        Interruption(stop, lambda: shutil.rmtree(scratch, ignore_errors=True)) as interruption,
    ):
        subject = open_subject(config)
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
                searcher = _searcher(
                    subject, study, store, recorded, records, dense, lease.driver, began, progress, tracking
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


def _searcher(
    subject: Subject,
    study: Study,
    store: Store,
    recorded: list[Evaluation],
    records: PatientRecords,
    dense: DenseAnswers,
    driver: Driver,
    began: float,
    progress: SearchProgress,
    tracking: Tracking,
) -> ScheduleSearcher:
    config, space = subject.config, subject.space
    dense_score = store.confirmation(study, PruningSchedule().hash)
    standing = Standing(subject.objectives, subject.model.layout, recorded, dense_score)
    seed = config.seed + driver.others  # drivers that search at once draw points of their own
    sampler = make_sampler(
        config.sampler,
        space,
        subject.objectives,
        seed=seed,
        trials=config.trials,
        recorded=len(recorded),
    )
    sampler.restore(recorded)
    limit = config.seconds
    timeout = config.timeout(dense.metrics.seconds)
    # A worker's first confirmation runs the dense model as well.
    confirming = 2 * timeout * max(1.0, subject.confirm.images / subject.images.images)

    def observe(snapshot: Snapshot) -> None:
        progress.update(snapshot)
        tracking.observe(snapshot)

    return ScheduleSearcher(
        space,
        sampler,
        flops=subject.table.flops,
        dense_flops=subject.table.dense,
        trials=config.trials,
        standing=standing,
        records=records,
        starts=starting_schedules(space),
        seed=seed,
        brood=config.brood,
        race=subject.raced is not None,
        confirm=subject.confirm.images > 0,
        timeouts=(timeout, confirming),
        deadline=lambda: limit is not None and time.monotonic() - began > limit,
        observe=observe,
        note=progress.note,
    )


def _search(
    subject: Subject,
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
        fingerprint=fingerprint(subject.model, subject.data, subject.confirm),
        threads=config.cpus_per_trial,
        gpu=config.gpus_per_trial > 0,
        folder=str(Path.cwd()),
        dense=DenseResult(asdict(replace(dense.metrics, tally=None)), dense.answers.numpy()),
        prefix_cache=parse_bytes(config.prefix_cache),
        race_error=config.race_error,
        agreement=subject.raced == "agreement",
        latency="latency" in subject.objectives,
    )
    cpus = (config.workers or max(1, available_cpus() // config.cpus_per_trial)) * config.cpus_per_trial
    with ray_session(scratch, cpus=cpus, address=config.ray_address):
        interruption.install()  # ray took SIGTERM
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


@contextmanager
def ray_session(scratch: Path, *, cpus: int, address: str | None = None) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster; end it, or let go of it, afterwards.

    Args:
        scratch: folder for Ray's files, where its path is short enough.
        cpus: that Ray on this machine may lease.
        address: of a cluster; None starts Ray on this machine.

    Raises:
        SearchError: Ray does not start, or the cluster cannot be reached.
    """
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "configure_logging": False}
    if address is not None:
        options["address"] = address
    else:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        if len(str(scratch)) <= LONGEST_RAY_FOLDER:
            options["_temp_dir"] = str(scratch)
    # Ray tells of workers that died, in colour and on stdout, which is for data.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            with nullcontext() if address is not None else loopback():
                ray.init(**options)
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            lines = str(error).strip().splitlines() or [type(error).__name__]
            token = address is not None and "RAY_AUTH_MODE" not in os.environ
            advice = "; if the cluster asks for a token, set RAY_AUTH_MODE=token here, too" if token else ""
            raise SearchError(f"Ray {where} cannot be started or reached: {lines[0]}{advice}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def loopback() -> Iterator[None]:
    """Let a Ray that starts in here listen on the loopback interface alone.

    On Linux it listens on all interfaces, even if it is told 127.0.0.1, for other nodes could join. The switch
    that it has for systems without clusters is what its environment variable would set when ray is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def check_address(address: str) -> None:
    """Find out within seconds whether a cluster answers; Ray itself would try for minutes.

    Raises:
        UsageError: the address is not HOST:PORT or auto.
        SearchError: nobody answers there.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):  # Tune's loop would run here, and each of its calls over the network
        raise UsageError(
            f"Ray address {address!r}: a search does not run through Ray's client; run it on a node of the cluster, "
            "with HOST:PORT or auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"Ray address {address!r}: expected HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise SearchError(f"Ray at {address}: nobody answers there: {error.strerror or error}") from None


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


def available_cpus() -> int:
    """Return the CPUs that this process may use, a container's limit considered."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):  # no such limit on this system
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, int(int(quota) / int(period))))
