"""Ray as this project starts it: quiet, on the loopback interface unless a cluster is named, files in one folder."""

import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services

from search.runtime.ray_environment import ray_environment
from spaces.errors import SearchError, UsageError

OBJECT_STORE_BYTES = 80 * 2**20  # nothing large goes through it; Ray takes no less than 75 MiB
LONGEST_RAY_FOLDER = 40  # a socket's path holds 107 bytes, and Ray adds some 60 to its folder


@contextmanager
def ray_session(scratch: Path, *, cpus: int, address: str | None = None) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster; shut it down, or disconnect, afterwards.

    Args:
        scratch: folder for Ray's files, used if its path is short enough.
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
    # Ray reports workers that died on stdout, which is for data.
    with ray_environment(), Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with nullcontext() if address is not None else loopback(), own_process_groups():
                ray.init(**options)
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            lines = str(error).strip().splitlines() or [type(error).__name__]
            token = address is not None and "RAY_AUTH_MODE" not in os.environ
            advice = "; if the cluster asks for a token, set RAY_AUTH_MODE=token here, too" if token else ""
            raise SearchError(f"Ray {where} cannot be started or reached: {lines[0]}{advice}") from error
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray replaced it
        try:
            yield
        finally:
            ray.shutdown()


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


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, within the limit of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):  # no such limit on this system
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, int(int(quota) / int(period))))
