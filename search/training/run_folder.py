"""The output folder of a training: locked while one runs, and protected from being overwritten by another."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.training.checkpoint import CHECKPOINT, PLAN, WEIGHTS
from spaces.errors import TrainingError, UsageError


def check_folder(out: Path) -> None:
    """Raise a UsageError if a training in this folder would overwrite the results of another one."""
    if (out / PLAN).exists():
        raise UsageError(f"{out} holds a fine-tuning of several schedules; choose another folder")
    if (out / WEIGHTS).exists() and not (out / CHECKPOINT).exists():
        raise UsageError(f"{out} holds a {WEIGHTS} without its {CHECKPOINT}; choose another folder")


def make_folder(out: Path) -> None:
    """Make a folder if it does not exist; raise a TrainingError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except RecursionError:  # pathlib makes one folder in another
        raise TrainingError(f"{str(out)[:80]}…: too many folders in one another") from None
    except OSError as error:
        raise TrainingError(f"{out}: the folder cannot be made ({error.strerror or error})") from None


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Make a folder and lock it against other trainings; remove it afterwards if nothing was written.

    The lock is on the folder itself and leaves no file behind. A file system may not support it; then there is none.

    Raises:
        UsageError: another process holds the lock.
        TrainingError: the folder cannot be made or opened.
    """
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    make_folder(out)
    try:
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise TrainingError(f"{out}: cannot be opened ({error.strerror or error})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{out}: another training is running there; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # the file system cannot lock folders
        yield
    finally:
        os.close(handle)
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
