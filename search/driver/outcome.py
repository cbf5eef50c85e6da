"""How a search ended."""

from dataclasses import dataclass, field

from results import Study


@dataclass
class SearchOutcome:
    """How a search ended.

    Attributes:
        study: with its counts at the end.
        ending: why nothing more was suggested.
        exit_code: 0, or 130 or 143 after a signal.
        evaluated: evaluations that this run recorded.
        overheads, forwards: seconds of each of them outside of forward passes, and in them; see `ScheduleSearcher`.
        seconds: what Tune took, starting its workers included.
    """

    study: Study
    ending: str
    exit_code: int = 0
    evaluated: int = 0
    overheads: list[float] = field(default_factory=list)
    forwards: list[float] = field(default_factory=list)
    seconds: float = 0.0
