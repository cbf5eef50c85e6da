"""What this process may use: CPUs, memory and folders, within the limits of a container or a batch system."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")  # lines of hierarchy:controllers:path
MEMORY = Path("/proc/meminfo")
_UNLIMITED = 2**60  # bytes; cgroup version 1 writes a number for no limit


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, within the limit of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(int(quota) for quota in _cpu_quotas())]))


def memory_limit() -> int | None:
    """Return the bytes of memory that this process may use, within the limit of its container; None if unknown."""
    limits = [limit for limit in _numbers("memory", "memory.max", "memory.limit_in_bytes") if limit < _UNLIMITED]
    with suppress(AttributeError, ValueError, OSError):  # not available on every system
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def usable_memory() -> int | None:
    """Return the bytes of memory that this process may use and that are free or can be freed; None if unknown."""
    found = [limit for limit in (memory_limit(), _free_memory()) if limit is not None]
    return min(found, default=None)


def _free_memory() -> int | None:
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):  # not Linux
        return None


def _cpu_quotas() -> Iterator[float]:
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()  # version 2
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")  # version 1; -1 is no limit
            if int(quota) > 0:
                yield int(quota) / int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))


def _numbers(controller: str, *names: str) -> Iterator[int]:
    for folder in _folders(controller):
        for name in names:
            with suppress(OSError, ValueError):  # no such file in this version, or "max"
                yield int((folder / name).read_text(encoding="ascii"))


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all above it; each may set a limit.

    Within a container the group's path may be that of the host, which does not exist there; the root is the
    container's own then.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root = CGROUPS
        elif controller in controllers.split(","):
            root = CGROUPS / controllers
        else:
            continue
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
