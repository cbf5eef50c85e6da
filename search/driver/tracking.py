"""Trackers, which follow a search from outside: they are told of its start, of each evaluation and of its end.

An error in a tracker never harms the search. It is reported once, and the tracker is still told of the rest.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from results import Evaluation, Study
from search.driver.outcome import SearchOutcome
from search.driver.progress import Snapshot
from spaces.errors import PrunefrontError


class Tracker(Protocol):
    """Follows one search, in the driver's main thread; each method may raise."""

    name: str  # as the user chose it, for warnings

    def on_start(self, study: Study) -> None:
        """Note the start; the study may have evaluations already."""

    def on_evaluation(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        """Note an evaluation that was just recorded, in any state."""

    def on_end(self, outcome: SearchOutcome | None) -> None:
        """Note the end; the outcome is None if the search ended with an error."""


class Tracking:
    """All trackers of a search as one that never raises; a context manager, since each start has an end.

    Args:
        trackers: told in this order.
        study: that is searched.
        note: called with a line for the user.
    """

    def __init__(self, trackers: Sequence[Tracker], study: Study, note: Callable[[str], None]) -> None:
        self._trackers, self._study, self._note = trackers, study, note
        self._warned: set[int] = set()
        self._ended = False

    def __enter__(self) -> Self:
        """Tell the trackers of the start."""
        self._tell(lambda tracker: tracker.on_start(self._study))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the trackers of the end, unless `end` has."""
        if not self._ended:
            self._tell(lambda tracker: tracker.on_end(None))

    def observe(self, snapshot: Snapshot, recorded: Sequence[Evaluation]) -> None:
        """Tell the trackers of evaluations that were recorded, in order; those in the spool have no number yet."""
        for evaluation in recorded:
            if evaluation.number >= 0:
                self._tell(partial(_tell_of, evaluation, snapshot))

    def end(self, outcome: SearchOutcome) -> None:
        """Tell the trackers of the end."""
        self._ended = True
        self._tell(lambda tracker: tracker.on_end(outcome))

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        for index, tracker in enumerate(self._trackers):
            try:
                say(tracker)
            except Exception as error:
                if index not in self._warned:
                    self._warned.add(index)
                    # Messages of other libraries may hold an address with its password; ours never do.
                    ours = isinstance(error, PrunefrontError)
                    reason = str(error) if ours else f"{type(error).__name__} in {type(error).__module__}"
                    self._note(f"warning: {tracker.name}: {reason}; the search goes on")


def _tell_of(evaluation: Evaluation, snapshot: Snapshot, tracker: Tracker) -> None:
    tracker.on_evaluation(evaluation, snapshot)
