"""What runs in a worker process: a Tune trainable that keeps its model and images between candidates.

A worker never touches the database. It imports little, so that it starts fast and stays small.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray import tune

from search.data.image_set import ImageSet
from search.evaluation.protocol import CONFIRM, SEARCH, WorkerSetup, failure, pack, unpack
from search.runtime.failures import first_line
from search.runtime.fingerprint import RefusedError, compare, node_name, software
from spaces import PruningSchedule
from spaces.errors import PrunefrontError

if TYPE_CHECKING:
    from search.evaluation.evaluator import DenseAnswers, Evaluator, Metrics


class EvaluationTrainable(tune.Trainable):
    """One Tune trial is one brood of candidates, one step long; the actor lives on for the next.

    What goes wrong in an evaluation comes back as a result, so that the actor with its model survives.
    """

    def setup(self, config: dict[str, Any], setup: WorkerSetup) -> None:  # type: ignore[override]
        """Take the task and open the model, so that this does not count in the time of the first trial."""
        self._bench = Bench(setup)
        self._task = dict(config)
        with suppress(Exception):  # the first step tries again, and what goes wrong there is a result
            self._bench.open()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next task."""
        self._task = dict(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return for each schedule of the task its metrics, or why there are none."""
        started = time.perf_counter()
        run = {SEARCH: self._bench.search, CONFIRM: self._bench.confirm}[self._task["task"]]
        try:
            results = run(self._task)
        except RefusedError as error:
            return {"refused": str(error), "done": True}
        except Exception as error:
            results = [failure(error, time.perf_counter() - started) for _ in self._task["schedules"]]
        return {"results": results, "done": True}


class Bench:
    """A model and the images it is tried on, opened when first used."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup

    def open(self) -> None:
        """Open the model and the images that candidates are evaluated on; raises what they do."""
        _ = self._evaluator

    def search(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """Evaluate a brood."""
        from search.evaluation.evaluator import Entry

        images = self._setup.images.images
        entries = [
            Entry(PruningSchedule.parse(text), None if bar is None else unpack(bar, images), flops)
            for text, flops, bar in zip(task["schedules"], task["flops"], task["bars"], strict=True)
        ]
        found = self._evaluator.evaluate_brood(entries)
        return [self._result(entry.schedule, metrics) for entry, metrics in zip(entries, found, strict=True)]

    def confirm(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """Evaluate a schedule on the images that are held back for it, and time it."""
        schedule = PruningSchedule.parse(task["schedules"][0])
        measured = as_result(self._confirmer.evaluate(schedule))
        latency = self._evaluator.latency(schedule)
        return [{**measured, "latency_ms": latency.ms, "latency_ratio": latency.ratio}]

    def _result(self, schedule: PruningSchedule, metrics: "Metrics | Exception") -> dict[str, Any]:
        if isinstance(metrics, Exception):
            return failure(metrics, 0.0)
        result = as_result(metrics)
        if self._setup.latency and not metrics.stopped:
            try:
                latency = self._evaluator.latency(schedule)
            except Exception as error:  # of this candidate alone
                return failure(error, metrics.seconds)
            result |= {"latency_ms": latency.ms, "latency_ratio": latency.ratio}
        return result

    @cached_property
    def _open(self) -> "Callable[[ImageSet, DenseAnswers | None, int], Evaluator]":
        """Build the model and open the data; torch and all that hangs on it is imported here.

        Raises:
            RefusedError: model or data cannot be opened here, or something is not what the driver has.
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
            data = open_data(setup.data)
            model = open_model(setup.model, setup.checkpoint, data)
            found = evaluation_fingerprint(model, data, setup.confirm)
        except PrunefrontError as error:
            raise RefusedError(f"node {node_name()}: {first_line(error)}") from None
        compare(setup.fingerprint, found, node_name())
        device = "cuda" if setup.gpu and torch.cuda.is_available() else "cpu"

        def evaluator(chosen: ImageSet, dense: "DenseAnswers | None", cache: int) -> "Evaluator":
            batches = data.batches(
                model.pretrained_cfg, model.img_size, chosen.split, chosen.images, setup.batch_size, chosen.skip
            )
            return Evaluator(
                model, batches, device, dense,
                prefix_cache=cache, agreement=setup.agreement, error=setup.race_error,
            )  # fmt: skip

        return evaluator

    @cached_property
    def _evaluator(self) -> "Evaluator":
        import torch

        from search.evaluation.evaluator import DenseAnswers, Metrics

        dense = self._setup.dense
        known = DenseAnswers(Metrics(**dense.metrics), torch.from_numpy(dense.answers.copy()))
        return self._open(self._setup.images, known, self._setup.prefix_cache)

    @cached_property
    def _confirmer(self) -> "Evaluator":
        return self._open(self._setup.confirm, None, 0)


def as_result(metrics: "Metrics") -> dict[str, Any]:
    """Return metrics as a trial reports them."""
    names = ("top1", "loss", "agreement", "images", "stopped", "estimate", "seconds", "forward_seconds")
    plain = {name: getattr(metrics, name) for name in names}
    outcomes = None if metrics.outcomes is None else pack(metrics.outcomes)
    return {**plain, "outcomes": outcomes, "latency_ms": None, "latency_ratio": None}
