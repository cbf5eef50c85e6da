"""Every error that prunefront raises on purpose.

    PrunefrontError            exit code 1   something failed
    ├── UsageError             exit code 2   what was asked for cannot be
    │   ├── ScheduleError          a schedule that is malformed or does not fit the model
    │   ├── BudgetError            a FLOPs budget that makes no sense or cannot be reached
    │   ├── SpaceError             a search space that is malformed
    │   ├── BackendError           a scan backend that is not known or cannot run here; a ValueError too
    │   └── UnknownNameError       no model, data set, sampler, study … of that name
    ├── CheckpointError            weights that cannot be read or belong to another model
    ├── DataError                  images that are missing, broken or of the wrong kind
    ├── FlopsError                 an operator whose cost nobody has stated
    ├── StoreError                 a data base that cannot be read or written
    │   ├── StudyExistsError       a new study whose name is taken
    │   ├── StudyMismatchError     a study that was begun with other settings
    │   └── DatabaseError          what the data base itself answered, which may be over later
    ├── SearchError                a search that cannot go on
    ├── EvaluationError            one candidate that could not be evaluated; the search goes on
    │   ├── NonFiniteError             logits that are NaN or infinite
    │   └── OutOfMemoryError           not even one image at a time fits
    ├── TrainingError              a training that cannot go on
    └── ExportError                a model that cannot be handed over in the form asked for

A message says what was wrong, where, and what to do, on one line: the command line prints it as it is.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class PrunefrontError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class UsageError(PrunefrontError):
    """What was asked for cannot be; nothing has been started."""

    exit_code = 2


class ScheduleError(UsageError):
    """A schedule that is malformed or does not fit the model."""


class BudgetError(UsageError):
    """A FLOPs budget that makes no sense or that the space cannot reach."""


class SpaceError(UsageError):
    """A search space that is malformed."""


class BackendError(UsageError, ValueError):
    """A scan backend that is not known or cannot run here; the message says which can."""


class UnknownNameError(UsageError):
    """A name that is not in a list of known names; the message offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none yet'}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class CheckpointError(PrunefrontError):
    """Weights that cannot be read safely or belong to another model."""


class DataError(PrunefrontError):
    """Images that are missing, broken or of the wrong kind."""


class FlopsError(PrunefrontError):
    """An operator whose cost nobody has stated."""


class StoreError(PrunefrontError):
    """A data base that cannot be read or written."""


class StudyExistsError(StoreError):
    """A new study whose name is taken."""


class StudyMismatchError(StoreError):
    """A study that was begun with other settings than those given now."""


class DatabaseError(StoreError):
    """What the data base answered, as opposed to a record that contradicts itself.

    Attributes:
        transient: whether the same call may succeed later: a lost connection, a lock, a full disk.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class SearchError(PrunefrontError):
    """A search that cannot go on."""


class EvaluationError(PrunefrontError):
    """One candidate that could not be evaluated; `failure` is the word that the store keeps for why."""

    failure = "ERROR"


class NonFiniteError(EvaluationError):
    """Logits that are NaN or infinite."""

    failure = "NONFINITE"


class OutOfMemoryError(EvaluationError):
    """Not even one image at a time fits into memory."""

    failure = "OOM"


class TrainingError(PrunefrontError):
    """A training that cannot go on."""


class ExportError(PrunefrontError):
    """A model that an exporter does not take, or a bundle that is damaged."""
