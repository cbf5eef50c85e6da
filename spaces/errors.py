"""Every error that prunefront raises on purpose.

    PrunefrontError            exit code 1   something failed
    ├── UsageError             exit code 2   invalid usage, found before anything was started
    │   ├── ScheduleError          a malformed schedule, or one that does not fit the model
    │   ├── BudgetError            a malformed FLOPs budget, or one that cannot be reached
    │   ├── SpaceError             a malformed search space, or one that does not fit the model
    │   ├── BackendError           an unknown scan backend, or one that cannot run here; also a ValueError
    │   └── UnknownNameError       no model, data set, sampler, study … of that name
    ├── CheckpointError            unreadable weights, or weights of another model
    │   └── CheckpointNotFoundError    no such file; also a UsageError
    ├── DataError                  missing or broken images, or images of the wrong kind
    │   └── DataNotFoundError          no such folder; also a UsageError
    ├── FlopsError                 an operator of unknown cost
    ├── StoreError                 a database that cannot be read or written
    │   ├── StudyExistsError           the name of a new study is taken
    │   ├── StudyMismatchError         a study that was started with other settings; also a UsageError
    │   ├── DatabaseNotFoundError      no such file; also a UsageError
    │   └── DatabaseError              an error of the database itself, possibly transient
    ├── SearchError                a search that cannot continue
    ├── EvaluationError            a candidate that could not be evaluated; the search continues
    │   ├── NonFiniteError             logits that are NaN or infinite
    │   └── OutOfMemoryError           not even a single image fits into memory
    ├── TrainingError              a training run that cannot continue
    └── ExportError                a model that cannot be exported, or a damaged bundle

A message says what was wrong, where, and what to do, on one line; the command line prints it unchanged.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class PrunefrontError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class UsageError(PrunefrontError):
    """Invalid usage, found before anything was started."""

    exit_code = 2


class ScheduleError(UsageError):
    """A malformed schedule, or one that does not fit the model."""


class BudgetError(UsageError):
    """A malformed FLOPs budget, or one that the space cannot reach."""


class SpaceError(UsageError):
    """A malformed search space, or one that does not fit the model."""


class BackendError(UsageError, ValueError):
    """An unknown scan backend, or one that cannot run here; the message lists those that can."""


class UnknownNameError(UsageError):
    """An unknown name; the message suggests the most similar known one, or lists all.

    >>> raise UnknownNameError("model", "vim_tny", ["vim_tiny", "vim_small"])
    Traceback (most recent call last):
    spaces.errors.UnknownNameError: unknown model 'vim_tny': did you mean 'vim_tiny'?

    Args:
        kind: what the name is of, such as `model`.
        name: the unknown name.
        known: the known names.
        advice: what to say where none is similar, in place of all names.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], advice: str | None = None) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else advice or f"known: {', '.join(names) or 'none yet'}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class CheckpointError(PrunefrontError):
    """Weights that cannot be read safely, or weights of another model."""


class CheckpointNotFoundError(CheckpointError, UsageError):
    """There is no such file of weights."""


class DataError(PrunefrontError):
    """Missing or broken images, or images of the wrong kind."""


class DataNotFoundError(DataError, UsageError):
    """There is no such folder of images."""


class FlopsError(PrunefrontError):
    """An operator of unknown cost."""


class StoreError(PrunefrontError):
    """A database that cannot be read or written."""


class StudyExistsError(StoreError):
    """The name of a new study is taken."""


class StudyMismatchError(StoreError, UsageError):
    """A study that was started with settings other than the present ones."""


class DatabaseNotFoundError(StoreError, UsageError):
    """There is no such database file, or no folder for it."""


class DatabaseError(StoreError):
    """An error of the database itself, as opposed to an inconsistent record in it.

    Attributes:
        transient: whether the same call may succeed later, as after a lost connection, a lock or a full disk.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class SearchError(PrunefrontError):
    """A search that cannot continue."""


class EvaluationError(PrunefrontError):
    """A candidate that could not be evaluated; the search continues.

    Attributes:
        failure: the code of the cause that the store records.
    """

    failure = "ERROR"


class NonFiniteError(EvaluationError):
    """Logits that are NaN or infinite."""

    failure = "NONFINITE"


class OutOfMemoryError(EvaluationError):
    """Not even a single image fits into memory."""

    failure = "OOM"


class TrainingError(PrunefrontError):
    """A training run that cannot continue."""


class ExportError(PrunefrontError):
    """A model that cannot be exported, or a damaged bundle."""
