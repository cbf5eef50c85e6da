"""The folder that a training writes to: nobody's yet, its own to go on in, or another one's."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.training.checkpoint import CHECKPOINT, PLAN, WEIGHTS
from spaces.errors import TrainingError, UsageError


def check_folder(out: Path) -> None:
    """Raise a UsageError where a training in this folder would write over what another one left."""
    if (out / PLAN).exists():
        raise UsageError(f"{out} holds a fine-tuning of several schedules; choose another folder")
    if (out / WEIGHTS).exists() and not (out / CHECKPOINT).exists():
        raise UsageError(f"{out} holds a {WEIGHTS} that no {CHECKPOINT} goes with; choose another folder")


def make_folder(out: Path) -> None:
    """Make a folder, if it is not there; raise a TrainingError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{out}: no folder can be made there ({error.strerror or error})") from None


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Make a folder and keep other trainings out of it meanwhile; if nothing was written, it is gone afterwards.

    It is locked itself, which leaves no file behind; file systems that lock no folders keep nobody out.

    Raises:
        UsageError: another process is at work in it.
        TrainingError: it cannot be made.
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
                f"{out}: another training is at work there; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # it locks no folders
        yield
    finally:
        os.close(handle)
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
