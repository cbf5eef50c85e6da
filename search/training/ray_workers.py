"""Workers on Ray that train one model together, each on its part of every batch.

Ray Train's TorchTrainer starts them and joins them in torch's process group; what they do is `fit`, as in one
process. The first of them writes the checkpoint of each epoch to OUT, which must be one folder for all, and the
driver takes the result from there: what Ray itself stores is thrown away, and nothing of it is read back.
"""

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from torch import distributed

from search.data.dataset import ImageData, open_data
from search.models import open_model, training_fingerprint
from search.runtime.failures import first_line
from search.runtime.fingerprint import compare, node_name
from search.runtime.ray_session import available_cpus, check_address, ray_session
from search.runtime.scratch import scratch_folder
from search.runtime.signals import Interruption
from search.training.data_parallel import Share
from search.training.epoch_log import TrainingLog
from search.training.finetune_job import FineTuning
from spaces.errors import PrunefrontError, TrainingError, UsageError
from ssm_models import PrunableModel, weights_digest

SHARED = ".crew"  # a folder in OUT: what Ray stores while it trains, and the sign that all see the same OUT
POLL = 0.2  # seconds between two looks at a signal that came

Message = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Work:
    """What every worker does, as plain values.

    Attributes:
        job: the fine-tuning.
        model, checkpoint, data: names that a worker opens model, teacher and images by.
        fingerprint: of what it must find then.
        folder: that relative paths are meant from.
        threads: for torch.
    """

    job: FineTuning
    model: str
    checkpoint: str | None
    data: str
    fingerprint: Mapping[str, str]
    folder: str
    threads: int

    def __call__(self, log: TrainingLog | None) -> None:
        """Do this worker's share.

        Raises:
            PrunefrontError: it cannot be done here; the message names the node.
        """
        with suppress(OSError):  # a node of a cluster may lack the folder; absolute paths need none
            os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        if not (Path(self.job.out) / SHARED).is_dir():
            raise TrainingError(
                f"node {node_name()}: {self.job.out} is not the driver's folder there; "
                "name one that all nodes share, by its absolute path"
            )
        data = open_data(self.data)
        model, teacher = (open_model(self.model, self.checkpoint, data) for _ in range(2))
        compare(self.fingerprint, training_fingerprint(model, data), node_name())
        self.job.run(model, teacher, data, device=get_device(), log=log, share=Share.of_process())


class Crew:
    """A context manager for workers that train together; Ray is started, or connected to, when it is first needed.

    Each worker has a GPU where Ray has one for each, and then they talk by NCCL; else by gloo.

    Args:
        workers: how many.
        address: of a cluster, HOST:PORT or auto; None starts Ray on this machine.
        checkpoint: what workers open the weights by, as for `open_model`.

    Raises:
        UsageError: fewer than one worker, or a malformed address.
        SearchError: nobody answers at the address.
    """

    def __init__(self, workers: int, address: str | None = None, checkpoint: str | None = None) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers}: expected at least 1")
        if address is not None:
            check_address(address)
        self.workers, self._address, self._checkpoint = workers, address, checkpoint
        self._threads = max(1, available_cpus() // workers) if address is None else 1
        self._open = ExitStack()
        self._scratch: Path | None = None  # where workers of this machine meet
        self._started = False

    def __enter__(self) -> Self:
        """Begin; nothing is started yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End Ray on this machine, or let go of the cluster."""
        self._open.close()

    def work(self, job: FineTuning, model: PrunableModel, teacher: PrunableModel, data: ImageData) -> Work:
        """Return the work of a fine-tuning.

        Raises:
            UsageError: the teacher has other weights than the model, which workers cannot open.
        """
        expected = training_fingerprint(model, data)
        if weights_digest(teacher) != expected["weights"]:
            raise UsageError("workers open model and teacher by one checkpoint, but the teacher has other weights")
        folder = str(Path.cwd())
        return Work(job, model.model_name, self._checkpoint, data.spec, expected, folder, self._threads)

    def run(self, work: Callable[[TrainingLog | None], None], out: Path, log: TrainingLog | None) -> None:
        """Do the work in every worker, and return when all have done it.

        Args:
            work: plain values; called with a log in the first worker and without one in the others.
            out: the folder that all of them share.
            log: told, in this thread, what the first worker's is.

        Raises:
            TrainingError: a worker failed or was lost, or Ray did; what it was is said in one line.
            KeyboardInterrupt, SystemExit: on SIGINT and SIGTERM.
        """
        shared = out / SHARED
        shared.mkdir(parents=True, exist_ok=True)
        try:
            with Interruption(lambda: None) as interruption:
                self._start()
                self._train(work, shared, log, interruption)
        finally:
            shutil.rmtree(shared, ignore_errors=True)

    def _start(self) -> None:
        if self._started:
            return
        scratch = self._open.enter_context(scratch_folder())
        if self._address is None:
            self._open.enter_context(_talk_on_loopback())
            self._scratch = scratch
        self._open.enter_context(ray_session(scratch, cpus=self.workers * self._threads, address=self._address))
        for name in ("ray.train", "ray.util"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._started = True

    def _train(
        self,
        work: Callable[[TrainingLog | None], None],
        shared: Path,
        log: TrainingLog | None,
        interruption: Interruption,
    ) -> None:
        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if found.get("CPU", 0.0) < self.workers * self._threads:
            raise UsageError(f"{self.workers} workers ask for a CPU each, but Ray has {found.get('CPU', 0.0):g}")
        gpus = found.get("GPU", 0.0) >= self.workers
        config = TorchConfig()
        if self._scratch is not None:
            config = _MeetInFile(str(self._scratch / f"meet-{secrets.token_hex(8)}"), "nccl" if gpus else "gloo")
        messages = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _member,
            train_loop_config={"work": work, "messages": messages},
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=gpus,
                resources_per_worker={"CPU": self._threads},
            ),
            torch_config=config,
            run_config=RunConfig(
                name="train", storage_path=str(shared.resolve()), failure_config=FailureConfig(max_failures=0)
            ),
        )
        failures: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # also what Ray raises when it is shut down
                failures.append(error)

        # In a thread of its own Ray Train leaves SIGINT alone; it would end the process with 0.
        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        said: list[str] = []
        try:
            while thread.is_alive() or not messages.empty():
                if interruption.signal is not None:
                    if interruption.exit_code == 130:
                        raise KeyboardInterrupt
                    raise SystemExit(interruption.exit_code)
                with suppress(Empty):
                    kind, values = messages.get(timeout=POLL)
                    if kind == "error":
                        said += values
                    elif log is not None:
                        getattr(log, kind)(*values)
            messages.shutdown()
        except ray.exceptions.RayError as error:  # the node that held the messages is gone, for one
            raise TrainingError(f"Ray: {first_line(error)}") from error
        if said or failures:
            raise TrainingError(said[0] if said else f"Ray Train: {first_line(failures[0])}") from (
                failures[0] if failures else None
            )


class _Messages:
    """The first worker's log: what it is told goes to the driver, without waiting for it."""

    def __init__(self, messages: Queue) -> None:
        self._messages = messages

    def reference(self, name: str, top1: float, loss: float) -> None:
        self._say("reference", name, top1, loss)

    def start(self, epochs: int, batches: int, done: int) -> None:
        self._say("start", epochs, batches, done)

    def batch(self, epoch: int, loss: float) -> None:
        self._say("batch", epoch, loss)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._say("epoch", dict(row))

    def _say(self, kind: str, *values: Any) -> None:
        actor: Any = self._messages.actor
        actor.put_nowait.remote((kind, values))


def _member(config: dict[str, Any]) -> None:
    """Be one of the workers."""
    work, messages = config["work"], config["messages"]
    try:
        work(_Messages(messages) if Share.of_process().first else None)
    except PrunefrontError as error:
        messages.put(("error", (str(error),)))
        raise


class _MeetInFile(TorchConfig):
    """How workers of one machine find each other: in a file, for torch's own store listens on all interfaces."""

    def __init__(self, path: str, backend: str) -> None:
        super().__init__(backend=backend)
        self.path = path

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train starts and ends the process group by."""
        return _FileBackend


class _FileBackend(Backend):
    share_cuda_visible_devices = True  # as for TorchConfig: NCCL needs to see the others' GPUs

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, _MeetInFile)
        world = len(worker_group)
        meeting = (backend_config.path, backend_config.backend, world)
        ray.get([worker_group.execute_single_async(rank, _meet, rank, *meeting) for rank in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Nothing: the group ends with its workers."""


def _meet(rank: int, path: str, backend: str, world: int) -> None:
    """Join the process group; run in each worker."""
    store = distributed.FileStore(path, world)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(minutes=30))


@contextmanager
def _talk_on_loopback() -> Iterator[None]:
    """Let processes that are started in here, and talk by gloo or NCCL, listen on the loopback interface alone."""
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    if Path("/sys/class/net/lo").exists():
        os.environ.update(dict.fromkeys(names, "lo"))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
