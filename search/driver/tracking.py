"""Whoever follows a search from outside: told of its start, of each evaluation and of its end.

What goes wrong in a tracker never hurts the search. It is said once, and the tracker is told of the rest all
the same.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from results import Evaluation, Study
from search.driver.progress import Snapshot
from spaces.errors import PrunefrontError, StoreError

if TYPE_CHECKING:
    from search.driver.outcome import SearchOutcome


class Tracker(Protocol):
    """Follows one search, in the driver's main thread; each method may raise."""

    name: str  # as the user chose it, for warnings

    def on_start(self, study: Study) -> None:
        """Begin; the study may have evaluations already."""

    def on_evaluation(self, evaluation: Evaluation, snapshot: Snapshot) -> None:
        """Take in an evaluation that was just recorded, in any state."""

    def on_end(self, outcome: "SearchOutcome | None") -> None:
        """End; None if the search ended with an error."""


class Tracking:
    """All trackers of a search as one, which never raises; a context manager, told of start and end by it.

    Args:
        trackers: told in this order.
        study: that is searched.
        read: returns what is recorded of a schedule, by hash, with its number.
        note: called with a line for the user.

    Attributes:
        outcome: of the search, set when it is known.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        study: Study,
        read: Callable[[str], Evaluation | None],
        note: Callable[[str], None],
    ) -> None:
        self._trackers, self._study, self._read, self._note = trackers, study, read, note
        self.outcome: SearchOutcome | None = None
        self._new: list[str] = []
        self._warned: set[int] = set()

    def __enter__(self) -> Self:
        """Tell of the start."""
        self._tell(lambda tracker: tracker.on_start(self._study))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell of the end, with its outcome if there is one."""
        self._tell(lambda tracker: tracker.on_end(self.outcome))

    def recorded(self, schedule_hash: str) -> None:
        """Remember an evaluation until the next `observe`, when the search knows where it stands with it."""
        if self._trackers:
            self._new.append(schedule_hash)

    def observe(self, snapshot: Snapshot) -> None:
        """Tell of the evaluations that were recorded."""
        while self._new:
            try:
                evaluation = self._read(self._new[0])
            except StoreError:  # whoever writes says so; the rest is told next time
                return
            del self._new[0]
            if evaluation is not None:
                self._tell(lambda tracker, e=evaluation: tracker.on_evaluation(e, snapshot))  # type: ignore[misc]

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        for index, tracker in enumerate(self._trackers):
            try:
                say(tracker)
            except Exception as error:
                if index not in self._warned:
                    self._warned.add(index)
                    # Other people's messages may hold an address with its password; ours never do.
                    ours = isinstance(error, PrunefrontError)
                    reason = str(error) if ours else f"{type(error).__name__} in {type(error).__module__}"
                    self._note(f"warning: {tracker.name}: {reason}; the search goes on")
