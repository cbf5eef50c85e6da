"""Ray as this project starts it: quiet, on the loopback interface unless a cluster is named, files in one folder."""

import functools
import logging
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services

from search.runtime.ray_environment import ray_environment
from search.runtime.ray_folders import OBJECT_STORE_BYTES, object_store_folder, own_token, ray_folder
from spaces.errors import SearchError, UsageError


@contextmanager
def ray_session(scratch: Path, *, cpus: int, address: str | None = None) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster; shut it down, or disconnect, afterwards.

    Args:
        scratch: folder for Ray's files; the sockets go elsewhere if its path is too long for them.
        cpus: that Ray on this machine may lease.
        address: of a cluster; None starts Ray on this machine.

    Raises:
        SearchError: Ray does not start, or the cluster cannot be reached.
    """
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        if address is None:
            folder = stack.enter_context(ray_folder(scratch))
            stack.enter_context(own_token(folder))
            options = _local_options(folder, cpus)
        # Ray reports workers that died on stdout, which is for data.
        nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(ray_environment())
        with nullcontext() if address is not None else loopback(), own_process_groups():
            _connect(options, address)
        stack.callback(ray.shutdown)
        yield


def _local_options(folder: Path, cpus: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "address": "local",  # without it, Ray would connect to RAY_ADDRESS
        "num_cpus": cpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(folder),
        "_plasma_directory": str(object_store_folder(folder)),
    }
    quoted = shlex.quote(sys.executable)
    if quoted != sys.executable:  # Ray's shell would cut a path with a space in it, and no worker would ever start
        options["runtime_env"] = {"py_executable": quoted}
    return options


def _connect(options: dict[str, Any], address: str | None) -> None:
    """Call `ray.init`; SearchError if Ray does not start or answer."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False, **options)
    except Exception as error:
        where = "on this machine" if address is None else f"at {address}"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        token = address is not None and "RAY_AUTH_MODE" not in os.environ
        advice = "; if the cluster asks for a token, set RAY_AUTH_MODE=token here, too" if token else ""
        raise SearchError(f"Ray {where} cannot be started or reached: {lines[0]}{advice}") from error
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray replaced it


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Start Ray's processes in a process group of their own, so that signals to the driver's group spare them.

    `timeout`, Slurm and service managers signal the whole group, and a driver without its Ray can record nothing.
    Only on Linux, where Ray's processes end with the driver however it ends; elsewhere Ray ends them by the group.
    """
    ray_services: Any = services
    before = ray_services.ConsolePopen
    if sys.platform == "linux":
        ray_services.ConsolePopen = functools.partial(before, process_group=0)
    try:
        yield
    finally:
        ray_services.ConsolePopen = before


@contextmanager
def loopback() -> Iterator[None]:
    """Let a Ray that is started meanwhile listen on the loopback interface only.

    On Linux it listens on all interfaces, even when told 127.0.0.1, since other nodes could join. Its switch for
    systems without clusters turns that off; the environment variable for it is read when ray is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def check_address(address: str) -> None:
    """Check within seconds that a cluster answers; Ray itself would try for minutes.

    Raises:
        UsageError: the address is not HOST:PORT or auto.
        SearchError: nobody answers there.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):  # Tune's loop would run here, and make each call over the network
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
