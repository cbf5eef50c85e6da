"""Starting processes by Ray Train: the Ray session, torch's process group, and messages back to the driver.

Each worker gets a GPU, and they communicate by NCCL, if Ray has one for each; otherwise by gloo.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from torch import distributed

from search.runtime.failures import first_line
from search.runtime.limits import available_cpus
from search.runtime.ray_session import check_address, ray_session
from search.runtime.scratch import scratch_folder
from spaces.errors import TrainingError, UsageError

Message = tuple[str, tuple[Any, ...]]
"""(what it is, its values)"""


class Messages(Protocol):
    """A queue from the workers to the driver; both ends use it."""

    def send(self, message: Message, *, wait: bool = False) -> None:
        """Send a message; with `wait`, return only when it has arrived."""

    def receive(self, timeout: float) -> Message | None:
        """Return the next message; None if there is none after `timeout` seconds."""

    def empty(self) -> bool:
        """Return whether there are no messages."""

    def close(self) -> None:
        """Free the queue."""


class Launcher(Protocol):
    """Runs a function in several processes that share a process group of torch."""

    @property
    def threads(self) -> int:
        """CPU threads per process."""

    def start(self) -> None:
        """Start or connect to what runs the processes, unless that is done already."""

    def messages(self) -> Messages:
        """Return a new queue."""

    def run(self, function: Callable[[Any], None], argument: Any, storage: Path) -> None:
        """Call `function(argument)` in every process, and return when all have returned.

        Args:
            function: at the top level of a module.
            argument: is pickled.
            storage: a folder that all processes see, for the launcher's own files.
        """

    def close(self) -> None:
        """Stop what `start` started."""


class RayLauncher:
    """A `Launcher` on Ray Train.

    Args:
        workers: number of processes.
        address: of a cluster, HOST:PORT or auto; None starts Ray on this machine.

    Raises:
        UsageError: fewer than one worker, or a malformed address.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers}: expected at least 1")
        if address is not None:
            check_address(address)
        self._workers, self._address = workers, address
        self.threads = max(1, available_cpus() // workers) if address is None else 1
        self._open = ExitStack()
        self._rendezvous: Path | None = None  # folder in which workers of this machine find each other
        self._started = False

    def start(self) -> None:
        """Start Ray, or connect to the cluster; SearchError if that fails."""
        if self._started:
            return
        scratch = self._open.enter_context(scratch_folder())
        if self._address is None:
            self._open.enter_context(_listen_on_loopback())
            self._rendezvous = scratch
        self._open.enter_context(ray_session(scratch, cpus=self._workers * self.threads, address=self._address))
        for name in ("ray.train", "ray.util"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._started = True

    def messages(self) -> Messages:
        """Return a queue in an actor of the cluster."""
        return _RayMessages(Queue(actor_options={"num_cpus": 0}))

    def run(self, function: Callable[[Any], None], argument: Any, storage: Path) -> None:
        """See `Launcher`; UsageError if Ray has too few CPUs, and whatever Ray Train raises."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if resources.get("CPU", 0.0) < self._workers * self.threads:
            raise UsageError(
                f"{self._workers} workers need a CPU each, but Ray has {resources.get('CPU', 0.0):g}; "
                "give fewer --workers"
            )
        gpus = resources.get("GPU", 0.0) >= self._workers
        TorchTrainer(
            _call,
            train_loop_config={"function": function, "argument": argument},
            scaling_config=ScalingConfig(
                num_workers=self._workers, use_gpu=gpus, resources_per_worker={"CPU": self.threads}
            ),
            torch_config=self._torch_config("nccl" if gpus else "gloo"),
            run_config=RunConfig(
                name="train", storage_path=str(storage.resolve()), failure_config=FailureConfig(max_failures=0)
            ),
        ).fit()

    def _torch_config(self, backend: str) -> TorchConfig:
        if self._rendezvous is None:
            return TorchConfig()
        return _FileRendezvous(str(self._rendezvous / f"rendezvous-{secrets.token_hex(8)}"), backend)

    def close(self) -> None:
        """Stop Ray on this machine, or disconnect from the cluster."""
        self._open.close()


def _call(config: dict[str, Any]) -> None:
    """Run in each worker."""
    config["function"](config["argument"])


class _RayMessages:
    """A `Messages` over Ray's queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def send(self, message: Message, *, wait: bool = False) -> None:
        if wait:
            self._queue.put(message)
        else:
            actor: Any = self._queue.actor
            actor.put_nowait.remote(message)

    def receive(self, timeout: float) -> Message | None:
        with _ray_errors(), suppress(Empty):
            message: Message = self._queue.get(timeout=timeout)
            return message
        return None

    def empty(self) -> bool:
        with _ray_errors():
            return self._queue.empty()

    def close(self) -> None:
        with _ray_errors():
            self._queue.shutdown()


@contextmanager
def _ray_errors() -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError as error:  # for example, the node of the queue was lost
        raise TrainingError(f"Ray: {first_line(error)}") from error


class _FileRendezvous(TorchConfig):
    """Lets workers of one machine find each other through a file; torch's TCP store listens on all interfaces."""

    def __init__(self, path: str, backend: str) -> None:
        super().__init__(backend=backend)
        self.path = path

    @property
    def backend_cls(self) -> type[Backend]:
        return _FileBackend


class _FileBackend(Backend):
    share_cuda_visible_devices = True  # as for TorchConfig: NCCL needs to see the GPUs of the others

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, _FileRendezvous)
        world_size = len(worker_group)
        arguments = (backend_config.path, backend_config.backend, world_size)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join_process_group, rank, *arguments)
                for rank in range(world_size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Do nothing: the process group ends with its workers."""


def _join_process_group(rank: int, path: str, backend: str, world_size: int) -> None:
    """Run in each worker."""
    store = distributed.FileStore(path, world_size)  # type: ignore[attr-defined]
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=30)
    )


@contextmanager
def _listen_on_loopback() -> Iterator[None]:
    """Restrict gloo and NCCL, in processes that are started in the block, to the loopback interface."""
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    if Path("/sys/class/net/lo").exists():
        os.environ.update(dict.fromkeys(names, "lo"))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
