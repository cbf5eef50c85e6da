"""The driver of a search: Ray Tune evaluates, the store remembers, the proposer learns.

Tune's workers never touch the data base. The driver is its only writer, and records a result before
anything else learns of it, so whatever dies, no paid evaluation is lost.
"""

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

import ssm_models
from results.records import Evaluation, Study, StudySpec
from results.store import Store
from search.config import SearchConfig
from search.data import open_data
from search.evaluator import Evaluator, Metrics
from search.progress import SearchProgress
from search.searcher import Candidate, Proposer
from search.versions import versions
from search.worker import Evaluation as EvaluationTrainable
from search.worker import WorkerSpec
from spaces import FlopsBudget
from spaces.errors import SearchError, StudyMismatchError, UnknownNameError, UsageError
from spaces.published import published_schedules
from spaces.space import SearchSpace, make_space

FAILURES_IN_A_ROW = 5  # after which a search stops: what fails again and again will not mend itself
OBJECT_STORE_BYTES = 100 * 2**20
# What must not change between the runs of a study, and how a person calls it.
_FIXED = {
    "model": "model",
    "img_size": "image size",
    "data_digest": "images",
    "images": "number of images",
    "weights_digest": "weights",
    "limit": "FLOPs budget",
    "space": "space",
    "sampler": "sampler",
    "objectives": "objectives",
}


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Attributes:
        study: as it stands now.
        reused: proposals that were known already.
        signal: the signal that ended it, or None.
        note: why it ended before all trials were recorded, or None.
    """

    study: Study
    reused: int
    signal: int | None
    note: str | None


def run_search(config: SearchConfig, store: Store) -> SearchOutcome:
    """Search until the study holds `config.trials` evaluations; an existing study is resumed.

    Raises:
        UsageError: settings that cannot be.
        StudyMismatchError: the study was begun with other settings.
        SearchError: too many evaluations failed in a row.
        PrunefrontError: model, data or store cannot be read or written.
    """
    setup = _Setup(config)
    study = _open_study(setup, store)
    recorded = store.evaluations(study, done_only=False)
    if len(recorded) >= config.trials:
        return SearchOutcome(study, 0, None, None)
    proposer = Proposer(
        setup.space,
        setup.table.flops,
        sampler=config.sampler,
        objectives=config.objective,
        seed=config.seed,
        trials=int(study.spec.config["trials"]),
        published=published_schedules(setup.model.layout),
        recorded=recorded,
    )
    with _ray(config), SearchProgress(config.trials, recorded) as progress:
        campaign = Campaign(store, study, proposer, config.trials - len(recorded), progress)
        campaign.deadline = time.monotonic() + config.seconds if config.seconds else None
        with campaign.interruptible():
            _tune(config, setup.worker_spec(), campaign)
    if campaign.failure:
        raise SearchError(campaign.failure)
    return SearchOutcome(store.study(study.name), proposer.reused, campaign.signal, campaign.note)


class _Setup:
    """Model, images, costs and space of a search, as the driver holds them."""

    def __init__(self, config: SearchConfig) -> None:
        self.config = config
        self.data = open_data(config.data)
        info = ssm_models.model_info(config.model)
        self.model = ssm_models.build(
            info.name, config.checkpoint, num_classes=self.data.num_classes, seed=config.seed
        )
        self.data.check_classes(self.model.num_classes, info.name)
        self.table = ssm_models.cost_table(self.model)
        self.budget = FlopsBudget.parse(config.flops_budget)
        self.space: SearchSpace = make_space(config.space, self.model.layout, self.table.flops, self.budget)
        self.batches = self.data.batches(
            self.model.pretrained_cfg, self.model.img_size, images=config.images, batch_size=config.batch_size
        )
        device = torch.device("cuda" if torch.cuda.is_available() and config.gpus_per_trial else "cpu")
        self.evaluator = Evaluator(self.model, self.batches, device)
        assert self.evaluator.dense is not None
        self.dense: Metrics = self.evaluator.dense
        self.weights_digest = ssm_models.weights_digest(self.model)

    def spec(self) -> StudySpec:
        config = self.config
        return StudySpec(
            name=config.study,
            model=config.model,
            img_size=self.model.img_size,
            num_classes=self.model.num_classes,
            layout=asdict(self.model.layout),
            data=config.data,
            data_digest=self.data.digest("val"),
            images=self.batches.images,
            weights_digest=self.weights_digest,
            checkpoint=config.checkpoint,
            budget=str(self.budget),
            limit=self.space.limit,
            dense_flops=self.table.dense,
            dense_top1=self.dense.top1,
            dense_loss=self.dense.loss,
            dense_latency_ms=self.dense.latency_ms,
            space=self.space.text,
            sampler=config.sampler,
            objectives=config.objective,
            seed=config.seed,
            versions=versions(),
            config=config.as_dict(),
        )

    def worker_spec(self) -> WorkerSpec:
        config = self.config
        return WorkerSpec(
            model=config.model,
            checkpoint=config.checkpoint,
            data=config.data,
            img_size=self.model.img_size,
            num_classes=self.model.num_classes,
            seed=config.seed,
            images=config.images,
            batch_size=config.batch_size,
            threads=config.cpus_per_trial,
            weights_digest=self.weights_digest,
            answers=self.evaluator.answers.tolist(),
        )


def _open_study(setup: _Setup, store: Store) -> Study:
    """Return the study to search in, new or as it was begun."""
    spec = setup.spec()
    try:
        study = store.study(spec.name)
    except UnknownNameError:
        return store.create_study(spec)
    differences = [
        f"{called} was {_short(old)} and is now {_short(new)}"
        for name, called in _FIXED.items()
        if (old := getattr(study.spec, name)) != (new := getattr(spec, name))
    ]
    if differences:
        raise StudyMismatchError(
            f"study {spec.name!r} was begun with other settings: {'; '.join(differences)}; choose another --study"
        )
    return study


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


class Campaign:
    """Hands out candidates and takes in results; the driver's main thread alone uses it.

    Attributes:
        left: evaluations still to be begun.
        failure: why the search has to end, or None.
        note: why it ended early without failing, or None.
        signal: the signal that asked for the end, or None.
        deadline: time (monotonic) after which nothing new is begun, or None.
    """

    def __init__(self, store: Store, study: Study, proposer: Proposer, left: int, progress: SearchProgress) -> None:
        self._store, self._study, self._proposer, self._progress = store, study, proposer, progress
        self._running: dict[str, Candidate] = {}
        self._failed_in_a_row: list[str] = []
        self.left = left
        self.failure: str | None = None
        self.note: str | None = None
        self.signal: int | None = None
        self.deadline: float | None = None

    def next(self, trial_id: str) -> Candidate | None:
        """Return the candidate of a Tune trial, or None when nothing more is to be begun."""
        if self.left <= 0 or self.failure or self.signal is not None:
            return None
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.note = "the time budget is spent"
            return None
        candidate = self._proposer.ask()
        if candidate is None:
            self.note = "the space holds no other schedule within the budget"
            return None
        self._running[trial_id] = candidate
        self.left -= 1
        return candidate

    def finished(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Record the result of a Tune trial; None when its process died."""
        candidate = self._running.pop(trial_id, None)
        if candidate is None:
            return
        if result is None:
            if self.signal is not None:
                self._proposer.forget(candidate)
                return
            result = {"failure": "KILLED", "error": "the worker's process died, twice"}
        failure = result.get("failure")
        measured = {name: result.get(name) for name in ("top1", "loss", "agreement", "latency_ms", "seconds")}
        evaluation = Evaluation(
            schedule=candidate.schedule,
            flops=candidate.flops,
            flops_ratio=candidate.flops / self._study.spec.dense_flops,
            state="failed" if failure else "done",
            images=result.get("images", 0),
            failure=failure,
            error=result.get("error"),
            parameters=candidate.parameters,
            sampler_state=self._proposer.sampler_state(candidate),
            origin=candidate.origin,
            **measured,
        )
        self._store.record(self._study, evaluation)
        self._proposer.tell(candidate, evaluation)
        self._progress.recorded(evaluation, self._proposer.reused)
        self._failed_in_a_row = [*self._failed_in_a_row, str(evaluation.error)] if failure else []
        if len(self._failed_in_a_row) >= FAILURES_IN_A_ROW:
            self.failure = (
                f"{FAILURES_IN_A_ROW} evaluations failed in a row, the first with: {self._failed_in_a_row[0]}"
            )

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """End gracefully at the first SIGINT or SIGTERM, at once at the second."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                ray.shutdown()
                os._exit(128 + number)
            self.signal = number
            self._progress.say("stopping: evaluations under way are still recorded; once more to stop at once")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class CampaignSearcher(Searcher):  # type: ignore[misc]
    """The campaign as Ray Tune wants to see it; Tune's driver loop calls it, in the driver's thread."""

    def __init__(self, campaign: Campaign) -> None:
        super().__init__(metric="top1", mode="max")
        self._campaign = campaign

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next candidate's configuration, or that there is none."""
        candidate = self._campaign.next(trial_id)
        return Searcher.FINISHED if candidate is None else {"schedule": candidate.schedule.text}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Hand the result on; an error here means that the process died."""
        self._campaign.finished(trial_id, None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the store is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""


@contextmanager
def _ray(config: SearchConfig) -> Iterator[None]:
    """Connect to the cluster, or start one on this machine, and leave nothing of it behind."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours records what is under way, and exits non-zero
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "ignore_reinit_error": True}
    if config.ray_address:
        try:
            ray.init(address=config.ray_address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SearchError(
                f"Ray at {config.ray_address!r} cannot be reached: {str(error).splitlines()[0]}"
            ) from None
    else:
        cores = workers_of(config) * config.cpus_per_trial
        ray.init(include_dashboard=False, num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def workers_of(config: SearchConfig) -> int:
    """Return how many evaluations run at a time, unless told: as many as the cores (or GPUs) allow."""
    if config.workers is not None:
        return config.workers
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.ray_address:
        resources = ray.cluster_resources()
        cores = resources.get("CPU", 1)
        if config.gpus_per_trial:
            cores = min(cores, config.cpus_per_trial * resources.get("GPU", 0) / config.gpus_per_trial)
    elif config.gpus_per_trial:
        cores = min(cores, config.cpus_per_trial * torch.cuda.device_count() / config.gpus_per_trial)
        if not torch.cuda.is_available():
            raise UsageError(f"--gpus-per-trial {config.gpus_per_trial:g}: no GPU is found here")
    return max(1, int(cores // config.cpus_per_trial))


def _tune(config: SearchConfig, spec: WorkerSpec, campaign: Campaign) -> None:
    """Let Ray Tune evaluate what the campaign hands out."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    resources = {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial}
    trainable: Callable[..., Any] = tune.with_resources(
        tune.with_parameters(EvaluationTrainable, spec=spec), resources
    )
    with tempfile.TemporaryDirectory(prefix="prunefront-") as folder:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=CampaignSearcher(campaign),
                num_samples=campaign.left,
                max_concurrent_trials=workers_of(config),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=1)
            ),
        )
        tuner.fit()
