"""The identity of a process, so that another one on the same host can tell whether it has ended.

A PID alone does not identify a process: PIDs are reused, and each container has its own. So the identity is the PID,
the start time, and the host together with its boot and PID namespace.
"""

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DEAD = "ZXx"  # states in /proc/PID/stat: zombie and dead


@dataclass(frozen=True)
class Process:
    """The identity of a process.

    Attributes:
        host: host name, with the boot id and the PID namespace where the system has them.
        pid: its PID on that host.
        started: its start time as the system writes it; empty if unknown.
    """

    host: str
    pid: int
    started: str


def this_process() -> Process:
    """Return the identity of this process."""
    pid = os.getpid()
    return Process(_host(), pid, _started(pid) or "")


def has_ended(process: Process) -> bool:
    """Return whether a process of this host has ended; False for other hosts, of which nothing is known."""
    try:
        return process.host == _host() and bool(process.started) and _started(process.pid) != process.started
    except PermissionError:  # a process has that PID, and is hidden from this user
        return False


@cache
def _host() -> str:
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    if boot.exists() and space.is_symlink():
        parts += [boot.read_text().strip(), str(space.readlink())]
    return "/".join(parts)[:255]


def _started(pid: int) -> str | None:
    """Return when a process started; None if no running process has that PID.

    Raises:
        PermissionError: a process has that PID, but the system hides other users' processes (`hidepid`).
    """
    if not Path("/proc/self/stat").exists():  # macOS
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}  # one format for every user
        asked = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return asked.stdout.strip() or None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)  # sends no signal: checks whether the process exists
        return None
    # PID (NAME) STATE PARENT …, where NAME may contain spaces and parentheses; field 22 is the start time.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in _DEAD else fields[19]
