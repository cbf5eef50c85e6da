"""A Ray cluster of several nodes on this machine, each started by `ray start`."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
SMALL = ["--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"]


class Cluster:
    """A head without CPUs and nodes of one CPU each.

    Attributes:
        address: of the head.
        environment: of processes that may connect: without the token they are refused.
        nodes: the `ray start` of each node.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self._started: list[subprocess.Popen[str]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        try:
            self._start_all(port, folder, nodes)
        except BaseException:
            self.stop()
            raise

    def _start_all(self, port: int, folder: Path, nodes: int) -> None:
        self._start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}")
        self.nodes = [self._start(f"--address={self.address}", "--num-cpus=1") for _ in range(nodes)]

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*RAY, *SMALL, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return process
        raise AssertionError("".join(said))

    def stop(self) -> None:
        """Kill all nodes that are left."""
        for process in self._started:
            kill(process)


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its descendants, as a loss of power does."""
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


@contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """Yield a running cluster; stop it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pf-"))  # pytest's own is too long for the path of a socket
    try:
        started = Cluster(folder, nodes)
        try:
            yield started
        finally:
            started.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
