"""How a search ended."""

from collections.abc import Sequence
from dataclasses import dataclass

from results import Study


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Attributes:
        study: with its counts at the end.
        ending: why nothing more was suggested.
        exit_code: 0, or 130 or 143 after a signal.
        evaluated: evaluations that this run recorded.
        overheads, forwards: seconds of each of them outside of forward passes, and in them; see `Trials`.
        seconds: what Tune took, starting its workers included.
    """

    study: Study
    ending: str
    exit_code: int = 0
    evaluated: int = 0
    overheads: Sequence[float] = ()
    forwards: Sequence[float] = ()
    seconds: float = 0.0
