"""Which process a driver is, so that another one on the same host can tell that it is no more.

A number alone does not name a process: numbers come back, and containers have their own. So a process is its number,
the moment it started, and the host with the boot and the container that it belongs to.
"""

import os
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DEAD = "ZXx"  # states of /proc: ended, and at most waiting for its parent to ask


@dataclass(frozen=True)
class Process:
    """A process as others may look for it.

    Attributes:
        host: name of the host, with its boot and its process name space where the system tells them.
        pid: its number there.
        started: when it started, in the system's own words; empty if the system does not tell.
    """

    host: str
    pid: int
    started: str


def this_process() -> Process:
    """Return what others know this process by."""
    pid = os.getpid()
    return Process(_host(), pid, _started(pid) or "")


def has_ended(process: Process) -> bool:
    """Return whether a process ran on this host and is no more; of other hosts nothing is known, so False."""
    try:
        return process.host == _host() and bool(process.started) and _started(process.pid) != process.started
    except PermissionError:  # there is one of that number, and it hides from us
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
    """Return when a process started; None if there is none of that number that still runs.

    Raises:
        PermissionError: there is one, but the system does not show another user's processes (`hidepid`).
    """
    if not Path("/proc/self/stat").exists():  # macOS
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        words = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}  # the same for every user
        asked = subprocess.run(command, capture_output=True, text=True, check=False, env=words)
        return asked.stdout.strip() or None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)  # no signal: it only asks
        return None
    # PID (NAME) STATE PARENT …, and a name may hold spaces and brackets; the start is field 22.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in _DEAD else fields[19]
