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

from spaces.errors import SearchError, UsageError

OBJECT_STORE_BYTES = 80 * 2**20  # nothing large goes through it; Ray takes no less than 75 MiB
LONGEST_RAY_FOLDER = 40  # a socket's path holds 107 bytes, and Ray adds some 60 to its folder


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
            signal.signal(signal.SIGTERM, handler)  # Ray took it
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Keep Ray's processes out of this one's process group: a signal to the group is for the driver to answer.

    `timeout`, Slurm and service managers send them so, and a driver whose Ray is gone can record nothing. On Linux
    alone: there Ray's processes end with the driver however it ends; elsewhere Ray ends them by the group.
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


def available_cpus() -> int:
    """Return the CPUs that this process may use, a container's limit considered."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):  # no such limit on this system
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, int(int(quota) / int(period))))
