"""What the driver knows of a study: its evaluations, its front, and what candidates race against."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from results import Evaluation
from results.objectives import search_front
from results.records import Confirmation
from search.evaluation.protocol import unpack
from spaces import PruningSchedule, TokenLayout


class StudyState:
    """The evaluations of a study by computation, and their front; not thread-safe.

    Two schedules that leave the same tokens everywhere by the same method are one computation.

    Args:
        objectives: of the study.
        layout: of the model.
        recorded: evaluations that the study has already.
        dense: the dense model's confirmed score, if there is one.
        race: whether candidates race against the front; see `SearchSetup.raced`.

    Attributes:
        counts: evaluations by state.
        race: as given.
    """

    def __init__(
        self,
        objectives: Sequence[str],
        layout: TokenLayout,
        recorded: Iterable[Evaluation],
        dense: Confirmation | None = None,
        *,
        race: bool = True,
    ) -> None:
        self._objectives, self._layout = tuple(objectives), layout
        self.race = race
        self._evaluations: dict[str, Evaluation] = {}
        self._computations: dict[object, str] = {}  # the hash of the schedule
        self._bars: list[tuple[int, int, NDArray[np.bool_]]] = []  # (FLOPs, images right, outcomes), both rising
        self._confirmed = {} if dense is None else {dense.schedule_hash: dense}
        self._front: list[Evaluation] | None = None  # None: to be computed
        self.counts = dict.fromkeys(("done", "stopped", "failed"), 0)
        for evaluation in recorded:
            self.add(evaluation)

    def __len__(self) -> int:
        """How many evaluations there are."""
        return len(self._evaluations)

    def __contains__(self, schedule_hash: str) -> bool:
        """Whether there is an evaluation of the schedule of that hash."""
        return schedule_hash in self._evaluations

    def add(self, evaluation: Evaluation) -> None:
        """Add a finished evaluation."""
        self._evaluations[evaluation.hash] = evaluation
        if evaluation.confirmed is not None:
            self._confirmed[evaluation.hash] = evaluation.confirmed
        self._computations[self.computation(evaluation.schedule)] = evaluation.hash
        self.counts[evaluation.state] += 1
        if self._front is not None and evaluation.state == "done":
            self._front = self._best([*self._front, evaluation])
        if evaluation.state == "done" and self.race and evaluation.outcomes is not None:
            self._add_bar(evaluation.flops, unpack(evaluation.outcomes, evaluation.images))

    def find(self, schedule: PruningSchedule) -> Evaluation | None:
        """Return the evaluation of a schedule, or of another one that computes the same."""
        known = self._computations.get(self.computation(schedule))
        return None if known is None else self._evaluations[known]

    def computation(self, schedule: PruningSchedule) -> object:
        """Return a key that two schedules share if and only if they compute the same."""
        left = self._layout.tokens(schedule)
        # The tokens that a step leaves stand in place of its ratio.
        steps = tuple((replace(step, keep=1.0), left[step.after - 1]) for step in schedule.steps)
        return steps, schedule.method

    def bar(self, flops: int) -> NDArray[np.bool_] | None:
        """Return (N,) bool, on which images the best point of at most `flops` is right; None if there is none."""
        best = None
        for cost, _, outcomes in self._bars:
            if cost <= flops:
                best = outcomes
        return best

    @property
    def confirmed(self) -> Mapping[str, Confirmation]:
        """The confirmed scores, by hash."""
        return self._confirmed

    def confirm(self, confirmation: Confirmation) -> None:
        """Add a confirmed score; the front stays as the search chose it."""
        self._confirmed[confirmation.schedule_hash] = confirmation

    def front(self) -> list[Evaluation]:
        """Return the Pareto front by the search's scores, each point with its confirmed one if there is one."""
        if self._front is None:
            self._front = self._best([e for e in self._evaluations.values() if e.state == "done"])
        return [replace(e, confirmed=self._confirmed.get(e.hash)) for e in self._front]

    def _best(self, evaluations: list[Evaluation]) -> list[Evaluation]:
        return [evaluations[i] for i in search_front(evaluations, self._objectives)]

    def _add_bar(self, flops: int, outcomes: NDArray[np.bool_]) -> None:
        right = int(outcomes.sum())
        if any(cost <= flops and best >= right for cost, best, _ in self._bars):
            return
        kept = [bar for bar in self._bars if not (bar[0] >= flops and bar[1] <= right)]
        self._bars = sorted([*kept, (flops, right, outcomes)], key=lambda bar: bar[:2])


class Confirmer:
    """Chooses which point of the front is measured again, on the images held back for it; not thread-safe.

    The front is what the search chose, and all of it is confirmed. A point whose score falls stays on it: a front
    that is chosen again by confirmed scores would report the best of noisy scores once more.

    Args:
        state: of the study.
    """

    def __init__(self, state: StudyState) -> None:
        self._state = state
        self._tried: set[str] = set()  # hashes of schedules under way, or failed

    def next(self) -> PruningSchedule | None:
        """Return the next schedule to confirm, the dense model's first; None if there is none at present."""
        waiting = self._waiting()
        if not waiting:
            return None
        self._tried.add(waiting[0].hash)
        return waiting[0]

    @property
    def left(self) -> int:
        """How many schedules are still to be confirmed, as far as is known."""
        return len(self._waiting())

    def _waiting(self) -> list[PruningSchedule]:
        front = self._state.front()
        schedules = dict.fromkeys([PruningSchedule(), *(e.schedule for e in front)] if front else [])
        known = self._state.confirmed.keys() | self._tried
        return [schedule for schedule in schedules if schedule.hash not in known]
