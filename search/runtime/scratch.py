"""Temporary folders of searches, and the removal of those that killed drivers left behind."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spaces.errors import SearchError

PREFIX = "prunefront-"
SCRATCH_NAME_BYTES = len(f"/{PREFIX}") + 8  # mkdtemp adds eight characters
NO_PLACE = (
    "neither TMPDIR nor /tmp can be written, and temporary files need some megabytes; "
    "set TMPDIR to a folder that can be, or mount one: docker run --tmpfs /tmp"
)
OWNER = "owner"  # a file on which the driver holds a lock while it lives


@contextmanager
def scratch_folder(where: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder, by default in TMPDIR, and remove it afterwards; remove those of killed owners first.

    Raises:
        SearchError: there is no folder for temporary files, or it cannot be written.
    """
    where = where or temporary_place()
    sweep(where)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
    except OSError as error:
        raise SearchError(f"no temporary folder can be made in {where}: {error.strerror or error}") from None
    try:
        with (folder / f".{OWNER}").open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)  # the kernel releases it however this process ends
            (folder / f".{OWNER}").rename(folder / OWNER)  # now visible to others, and locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_place() -> Path:
    """Return TMPDIR, or the usual folder for temporary files.

    Raises:
        SearchError: none can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise SearchError(NO_PLACE) from None


def sweep(where: Path) -> list[Path]:
    """Remove folders whose owner is gone, and end the processes that work in them; return the folders.

    Only this project's folders of this user are touched, and only processes of this user whose command line names
    such a folder.
    """
    swept = []
    for folder in sorted(where.glob(f"{PREFIX}*")):
        with suppress(OSError):  # another process is removing it
            if not folder.is_dir() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / OWNER).open() as owner:  # without this file nothing is known of the owner
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end_processes(folder)
                shutil.rmtree(folder)
                swept.append(folder)
    return swept


def _end_processes(folder: Path) -> None:
    """Kill the processes that name the folder on their command line, as Ray's do; needs /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has just ended
            if entry.stat().st_uid != os.getuid() or int(entry.name) == os.getpid():
                continue
            words = (entry / "cmdline").read_bytes()
            if f"{folder}/".encode() in words or f"{folder}\0".encode() in words:
                os.kill(int(entry.name), signal.SIGKILL)
