"""The trackers: an Optuna storage, MLflow, and Weights & Biases."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from results import Evaluation, Study
from results.export.optuna_mirror import Mirror
from search.driver.outcome import SearchOutcome
from search.driver.progress import Snapshot
from search.driver.tracking import Tracker
from spaces.errors import UnknownNameError, UsageError

PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}  # that hold the libraries
PROJECT = "prunefront"  # MLflow's experiment and W&B's project, unless their own variables name others


class MirrorTracker:
    """Keeps an Optuna storage up to date; after an error it writes all that is missing with the next evaluation.

    Args:
        mirror: the storage.
        read: returns all evaluations of a study in order, with their confirmed scores.
    """

    name = "--mirror"

    def __init__(self, mirror: Mirror, read: Callable[[Study], Sequence[Evaluation]]) -> None:
        self._mirror, self._read = mirror, read
        self._study: Study | None = None
        self._behind = True

    def on_start(self, study: Study) -> None:
        """Write what the study has already."""
        self._study = study
        self._catch_up()

    def on_evaluation(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        """Write it."""
        if self._behind or self._study is None:
            self._catch_up()
            return
        self._behind = True
        self._mirror.update(self._study, [evaluation])
        self._behind = False

    def on_end(self, outcome: SearchOutcome | None) -> None:
        """Write what is missing, confirmed scores too."""
        self._catch_up()

    def _catch_up(self) -> None:
        if self._study is not None:
            self._behind = True
            self._mirror.forget()
            self._mirror.update(self._study, self._read(self._study))
            self._behind = False


class MLflowTracker:
    """A run of MLflow for each run of a search, at MLFLOW_TRACKING_URI.

    Raises:
        UsageError: MLflow is not installed.
    """

    name = "--track mlflow"

    def __init__(self) -> None:
        self._mlflow = _library("mlflow")
        self._client: Any = None
        self._experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self._run: str | None = None

    def on_start(self, study: Study) -> None:
        """Start a run with the study's settings as its parameters."""
        from mlflow.entities import Param

        self._client = self._mlflow.MlflowClient()  # which connects
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        run = self._client.create_run(experiment, run_name=study.name, tags={"prunefront.study": study.name})
        self._run = run.info.run_id
        params = [Param(name, str(value)[:500]) for name, value in settings(study).items()]
        self._client.log_batch(self._run, params=params)

    def on_evaluation(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        """Log its metrics; the step is its number."""
        from mlflow.entities import Metric

        if self._run is None:
            return
        now = int(datetime.now(UTC).timestamp() * 1000)
        found = metrics(evaluation, snapshot).items()
        self._client.log_batch(self._run, [Metric(key, value, now, evaluation.number) for key, value in found])

    def on_end(self, outcome: SearchOutcome | None) -> None:
        """End the run."""
        if self._run is not None:
            if outcome is not None:
                self._client.set_tag(self._run, "prunefront.ending", outcome.ending)
            state = "FAILED" if outcome is None else "KILLED" if outcome.exit_code else "FINISHED"
            self._client.set_terminated(self._run, state)


class WandbTracker:
    """A run of Weights & Biases for each run of a search; a study's runs are one group.

    Raises:
        UsageError: wandb is not installed.
    """

    name = "--track wandb"

    def __init__(self) -> None:
        self._wandb = _library("wandb")
        self._run: Any = None

    def on_start(self, study: Study) -> None:
        """Start a run with the study's settings as its configuration."""
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=study.name,
            name=study.name,
            config=settings(study),
            settings=self._wandb.Settings(silent=True, console="off"),  # stdout is for data
        )

    def on_evaluation(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        """Log its metrics and its schedule."""
        if self._run is not None:
            self._run.log({**metrics(evaluation, snapshot), "schedule": evaluation.schedule.text})

    def on_end(self, outcome: SearchOutcome | None) -> None:
        """End the run."""
        if self._run is not None:
            if outcome is not None:
                self._run.summary["ending"] = outcome.ending
            self._run.finish(exit_code=1 if outcome is None else outcome.exit_code)


TRACKERS: dict[str, Callable[[], Tracker]] = {"mlflow": MLflowTracker, "wandb": WandbTracker}


def make_tracker(name: str) -> Tracker:
    """Return a tracker by the name that `--track` takes.

    Raises:
        UnknownNameError: there is none of that name.
        UsageError: its library is not installed.
    """
    if name not in TRACKERS:
        raise UnknownNameError("tracker", name, TRACKERS)
    return TRACKERS[name]()


def settings(study: Study) -> dict[str, Any]:
    """Return the settings of a study that a tracker shows; the database's address is not among them."""
    spec = study.spec
    names = ("model", "data", "images", "budget", "space", "sampler", "seed", "dense_flops", "dense_top1")
    digests = ("weights_digest", "data_digest")
    return {"study": spec.name, **{name: getattr(spec, name) for name in (*names, *digests)}}


def metrics(evaluation: Evaluation, snapshot: Snapshot) -> dict[str, float]:
    """Return the numbers that a tracker logs for an evaluation, without those that it does not have."""
    done = evaluation.state == "done"
    own = {
        "top1": evaluation.top1 if done else None,
        "loss": evaluation.loss if done else None,
        "agreement": evaluation.agreement if done else None,
        "latency_ms": evaluation.latency_ms,
        "flops_ratio": evaluation.flops_ratio,
        "seconds": evaluation.seconds,
        "front": snapshot.front,
        "hypervolume": snapshot.hypervolume,
        "done": snapshot.done,
        "stopped": snapshot.stopped,
        "failed": snapshot.failed,
    }
    return {name: float(value) for name, value in own.items() if value is not None}


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UsageError(f"--track {name} needs {name}: run `pip install {PACKAGES[name]}`") from None
