"""Workers on Ray that fine-tune one model together, each on its part of every batch.

Every worker runs the same `Trainer` as a single process would. Rank 0 writes the checkpoint of each epoch to OUT,
which must be the same folder for all, and the driver resumes from it. What Ray itself stores is deleted unread.
"""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from ray.train.torch import get_device

from search.data.dataset import ImageData, open_data
from search.models import open_model, training_fingerprint
from search.runtime.failures import first_line
from search.runtime.fingerprint import compare, node_name
from search.runtime.signals import Interruption
from search.training.data_parallel import DataParallelRank
from search.training.finetune_job import FineTuneJob
from search.training.observer import SilentObserver, TrainingObserver
from search.training.ray_launcher import Launcher, Messages, RayLauncher
from search.training.training_run import TrainingRun
from spaces.errors import PrunefrontError, TrainingError, UsageError
from ssm_models import PrunableModel, weights_digest

WORKERS_FOLDER = ".workers"  # in OUT, during a training: Ray's files, and the proof that a worker sees the same OUT
POLL_SECONDS = 0.2  # between two checks for a signal
ERROR = "error"  # kind of the message that carries a worker's error; the others are named by the observer's methods


@dataclass(frozen=True)
class WorkerTask:
    """What every worker does, as plain values.

    Attributes:
        job: the fine-tuning.
        run: how it is run; device, rank and observer are the worker's own.
        model, checkpoint, data, class_order, img_size: by which a worker opens model, teacher and images.
        fingerprint: what it must then find.
        folder: the driver's working directory, for relative paths.
        threads: for torch.
    """

    job: FineTuneJob
    run: TrainingRun
    model: str
    checkpoint: str | None
    data: str
    class_order: str | None
    fingerprint: Mapping[str, str]
    folder: str
    threads: int
    img_size: tuple[int, int] | None = None

    def __call__(self, observer: TrainingObserver) -> None:
        """Train this worker's part.

        Raises:
            PrunefrontError: it cannot be done on this node; the message names the node.
        """
        with suppress(OSError):  # a node of a cluster may lack the folder; absolute paths need none
            os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        if not (self.run.out / WORKERS_FOLDER).is_dir():
            raise TrainingError(
                f"node {node_name()}: {self.run.out} is not the driver's folder there; "
                "name one that all nodes share, by its absolute path"
            )
        data = open_data(self.data, class_order=self.class_order, quiet=True)
        model, teacher = (open_model(self.model, self.checkpoint, data, self.img_size) for _ in range(2))
        compare(self.fingerprint, training_fingerprint(model, data, self.job.split), node_name())
        run = replace(self.run, device=get_device(), rank=DataParallelRank.current(), observer=observer)
        self.job.trainer(model, teacher, data, run).fit()


class RayWorkers:
    """Workers that train together, as `finetune_model` takes them. A context manager.

    Ray is started, or connected to, when it is first needed.

    Args:
        count: number of workers.
        address: of a cluster, HOST:PORT or auto; None starts Ray on this machine.
        checkpoint, img_size: what workers open the weights by, as for `open_model`.
        launcher: starts the processes; by default Ray Train.

    Raises:
        UsageError: fewer than one worker, or a malformed address.
    """

    def __init__(
        self,
        count: int,
        address: str | None = None,
        checkpoint: str | None = None,
        launcher: Launcher | None = None,
        *,
        img_size: tuple[int, int] | None = None,
    ) -> None:
        self._launcher = launcher or RayLauncher(count, address)
        self._checkpoint, self._img_size = checkpoint, img_size
        self.count = count

    def __enter__(self) -> Self:
        """Begin; nothing is started yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop Ray on this machine, or disconnect from the cluster."""
        self._launcher.close()

    def assign(
        self, job: FineTuneJob, model: PrunableModel, teacher: PrunableModel, data: ImageData, run: TrainingRun
    ) -> Callable[[], None]:
        """Return a function that trains the job; see `search.training.finetune.Workers`.

        Raises:
            UsageError: model and teacher have different weights; workers open both by one checkpoint.
        """
        task = self.task(job, model, teacher, data, run)
        return partial(self.run, task, run.out, run.observer)

    def task(
        self, job: FineTuneJob, model: PrunableModel, teacher: PrunableModel, data: ImageData, run: TrainingRun
    ) -> WorkerTask:
        """Return what each worker does; arguments and errors as for `assign`."""
        expected = training_fingerprint(model, data, job.split)
        if weights_digest(teacher) != expected["weights"]:
            raise UsageError("workers open model and teacher by one checkpoint, but the teacher has other weights")
        return WorkerTask(
            job=job,
            run=replace(run, observer=SilentObserver(), device=None),
            model=model.model_name,
            checkpoint=self._checkpoint,
            data=data.spec,
            class_order=data.class_order,
            fingerprint=expected,
            folder=str(Path.cwd()),
            threads=self._launcher.threads,
            img_size=self._img_size,
        )

    def run(self, task: Callable[[TrainingObserver], None], out: Path, observer: TrainingObserver) -> None:
        """Do the task in every worker, and return when all have finished.

        Args:
            task: is pickled; called with an observer, which reports to the driver on rank 0 and is silent elsewhere.
            out: the folder that all workers share.
            observer: receives, in this thread, what rank 0 reports.

        Raises:
            TrainingError: a worker failed or was lost, or Ray failed; the message is one line.
            SearchError: Ray does not start.
            KeyboardInterrupt, SystemExit: on SIGINT and SIGTERM.
        """
        shared = out / WORKERS_FOLDER
        shared.mkdir(parents=True, exist_ok=True)
        try:
            with Interruption(lambda: None) as interruption:
                self._launcher.start()
                messages = self._launcher.messages()
                training = _Background(partial(self._launcher.run, _work, (task, messages), shared))
                errors = _relay(messages, observer, training, interruption)
        finally:
            shutil.rmtree(shared, ignore_errors=True)
        if errors:
            raise TrainingError(errors[0]) from training.error
        if isinstance(training.error, PrunefrontError):
            raise training.error
        if training.error is not None:
            raise TrainingError(f"Ray Train: {first_line(training.error)}") from training.error


class _Background:
    """A function running in a thread. In the main thread, Ray Train would take over SIGINT and exit with 0."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # including what Ray raises when it is shut down
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()


def _relay(
    messages: Messages, observer: TrainingObserver, training: _Background, interruption: Interruption
) -> list[str]:
    """Pass messages on to the observer until the training has ended; return the workers' errors.

    Raises:
        KeyboardInterrupt, SystemExit: a signal arrived.
    """
    errors: list[str] = []
    while training.running or not messages.empty():
        if interruption.signal is not None:
            raise KeyboardInterrupt if interruption.exit_code == 130 else SystemExit(interruption.exit_code)
        message = messages.receive(POLL_SECONDS)
        if message is None:
            continue
        kind, values = message
        if kind == ERROR:
            errors += values
        else:
            getattr(observer, kind)(*values)
    messages.close()
    return errors


def _work(argument: tuple[Callable[[TrainingObserver], None], Messages]) -> None:
    """Run in each worker."""
    task, messages = argument
    try:
        task(_Reporter(messages) if DataParallelRank.current().writes else SilentObserver())
    except PrunefrontError as error:
        messages.send((ERROR, (str(error),)), wait=True)
        raise


class _Reporter:
    """Rank 0's observer: sends everything to the driver, without waiting for it."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    def on_reference(self, name: str, top1: float, loss: float) -> None:
        self._messages.send(("on_reference", (name, top1, loss)))

    def on_start(self, epochs: int, batches: int, done: int) -> None:
        self._messages.send(("on_start", (epochs, batches, done)))

    def on_batch(self, epoch: int, loss: float) -> None:
        self._messages.send(("on_batch", (epoch, loss)))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._messages.send(("on_epoch", (dict(row),)))
