"""What runs in a worker process: a Tune trainable that keeps its model and images between trials.

A worker never touches the database. It imports torch only when it opens its model, so that it starts fast.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray import tune

from search.data.image_set import ImageSet
from search.evaluation.protocol import (
    CONFIRM,
    SEARCH,
    Failure,
    Measurement,
    WorkerSetup,
    pack,
    task_entries,
)
from search.runtime.failures import first_line
from search.runtime.fingerprint import RefusedError, compare, node_name, software
from spaces import PruningSchedule
from spaces.errors import PrunefrontError

if TYPE_CHECKING:
    from search.evaluation.evaluator import Evaluator
    from search.evaluation.metrics import DenseAnswers, Latency, Metrics


class EvaluationTrainable(tune.Trainable):
    """Runs a trial, which is one task of one step; the actor then lives on for the next trial.

    What goes wrong in an evaluation comes back as a result, so that the actor and its model survive.

    Attributes:
        candidates: runs the tasks.
        task: the trial's, from `search_task` or `confirm_task`.
    """

    def setup(self, config: dict[str, Any], setup: WorkerSetup) -> None:  # type: ignore[override]
        """Take the task and open the model, which must not count in the time of the first trial."""
        self.candidates = CandidateRunner(setup)
        self.task = dict(config)
        with suppress(Exception):  # the first step tries again, and reports what goes wrong
            self.candidates.open()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next task."""
        self.task = dict(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return a `Measurement` or a `Failure` for each schedule of the task, or why this worker is refused."""
        started = time.perf_counter()
        run = {SEARCH: self.candidates.search, CONFIRM: self.candidates.confirm}[self.task["task"]]
        results: list[Measurement | Failure]
        try:
            results = run(self.task)
        except RefusedError as error:
            return {"refused": str(error), "done": True}
        except Exception as error:
            seconds = time.perf_counter() - started
            results = [Failure.of(error, seconds) for _ in self.task["schedules"]]
        return {"results": results, "done": True}


class CandidateRunner:
    """Runs the tasks of a worker on a model and images that it opens when they are first needed."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup

    def open(self) -> None:
        """Open the model and the images that candidates are evaluated on.

        Raises:
            RefusedError: they cannot be opened here, or differ from the driver's.
        """
        _ = self.evaluator

    def search(self, task: dict[str, Any]) -> list[Measurement | Failure]:
        """Evaluate a group of candidates."""
        entries = task_entries(task, self._setup.images.images)
        found = self.evaluator.evaluate_group(entries)
        return [self._result(entry.schedule, metrics) for entry, metrics in zip(entries, found, strict=True)]

    def confirm(self, task: dict[str, Any]) -> list[Measurement | Failure]:
        """Evaluate and time a schedule on the images that are held back for it."""
        schedule = PruningSchedule.parse(task["schedules"][0])
        metrics = self.confirming_evaluator.evaluate(schedule)
        return [measurement(metrics, self.evaluator.latency(schedule))]

    @cached_property
    def evaluator(self) -> "Evaluator":
        """Of the images that candidates are evaluated on."""
        import torch

        from search.evaluation.metrics import DenseAnswers, Metrics

        dense = self._setup.dense
        known = DenseAnswers(Metrics(**dense.metrics), torch.from_numpy(dense.answers.copy()))
        return self._new_evaluator(self._setup.images, known, self._setup.prefix_cache, self._setup.agreement)

    @cached_property
    def confirming_evaluator(self) -> "Evaluator":
        """Of the images that the front is confirmed on; its model is that of `evaluator`.

        Its outcomes are right answers whatever candidates race for: the difference of top-1 is taken from them.
        """
        return self._new_evaluator(self._setup.confirm, None, 0, False)

    def _result(self, schedule: PruningSchedule, metrics: "Metrics | Exception") -> Measurement | Failure:
        if isinstance(metrics, Exception):
            return Failure.of(metrics, 0.0)
        if not self._setup.latency or metrics.stopped:
            return measurement(metrics)
        try:
            return measurement(metrics, self.evaluator.latency(schedule))
        except Exception as error:  # of this candidate alone
            return Failure.of(error, metrics.seconds)

    @cached_property
    def _new_evaluator(self) -> "Callable[[ImageSet, DenseAnswers | None, int, bool], Evaluator]":
        """Open model and data once; torch is imported here.

        Raises:
            RefusedError: they cannot be opened here, or differ from the driver's.
        """
        import torch

        from search.data.dataset import open_data
        from search.evaluation.evaluator import Evaluator
        from search.models import evaluation_fingerprint, open_model

        setup = self._setup
        with suppress(OSError):  # a node of a cluster may lack the folder; absolute paths need none
            os.chdir(setup.folder)
        torch.set_num_threads(setup.threads)
        compare(setup.fingerprint, {**setup.fingerprint, **software()}, node_name())
        try:
            data = open_data(setup.data, class_order=setup.class_order, quiet=True)
            model = open_model(setup.model, setup.checkpoint, data, setup.img_size)
            found = evaluation_fingerprint(model, data, setup.confirm)
        except PrunefrontError as error:
            raise RefusedError(f"node {node_name()}: {first_line(error)}") from None
        compare(setup.fingerprint, found, node_name())
        device = "cuda" if setup.gpu and torch.cuda.is_available() else "cpu"

        def new_evaluator(chosen: ImageSet, dense: "DenseAnswers | None", cache: int, agreement: bool) -> "Evaluator":
            batches = data.batches(
                model.pretrained_cfg,
                model.img_size,
                split=chosen.split,
                images=chosen.images,
                batch_size=setup.batch_size,
                skip=chosen.skip,
                order=chosen.order,
            )
            return Evaluator(
                model, batches, device, dense,
                prefix_cache=cache, agreement=agreement, error=setup.race_error,
            )  # fmt: skip

        return new_evaluator


def measurement(metrics: "Metrics", latency: "Latency | None" = None) -> Measurement:
    """Return what a trial reports of an evaluation."""
    return Measurement(
        top1=metrics.top1,
        loss=metrics.loss,
        agreement=metrics.agreement,
        images=metrics.images,
        outcomes=None if metrics.outcomes is None else pack(metrics.outcomes),
        stopped=metrics.stopped,
        estimate=metrics.estimate,
        seconds=metrics.seconds,
        forward_seconds=metrics.forward_seconds,
        latency_ms=None if latency is None else latency.ms,
        latency_ratio=None if latency is None else latency.ratio,
    )
