"""What the driver knows of a study while it searches: its evaluations, its front, and what there is to beat."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from results import Evaluation
from results.objectives import objective_value, objectives_front
from results.records import Confirmation
from search.evaluation.protocol import unpack
from spaces import PruningSchedule, TokenLayout

RACED = ("top1", "agreement")  # objectives that are shares of images, so that two candidates can race image by image


def raced_objective(objectives: Sequence[str]) -> str | None:
    """Return the objective that a race decides: the one beside FLOPs, if it is a share of images; else None."""
    others = [name for name in objectives if name != "flops"]
    return others[0] if len(objectives) == 2 and len(others) == 1 and others[0] in RACED else None


class StudyState:
    """The evaluations of a study by what they compute, and the front of them; for one thread.

    Two schedules that leave the same tokens everywhere by the same method are one computation.

    Args:
        objectives: of the study.
        layout: of the model.
        recorded: what the study has already.
        dense: the dense model's confirmed score, if there is one.
    """

    def __init__(
        self,
        objectives: Sequence[str],
        layout: TokenLayout,
        recorded: Iterable[Evaluation],
        dense: Confirmation | None = None,
    ) -> None:
        self._objectives, self._layout = tuple(objectives), layout
        self._raced = raced_objective(objectives)
        self._evaluations: dict[str, Evaluation] = {}
        self._computations: dict[object, str] = {}  # the hash of each
        self._bars: list[tuple[int, int, NDArray[np.bool_]]] = []  # (FLOPs, images right, outcomes), both rising
        self._confirmed = {} if dense is None else {dense.schedule_hash: dense}
        self._front: list[Evaluation] | None = None  # as far as it is known
        self.counts = dict.fromkeys(("done", "stopped", "failed"), 0)
        for evaluation in recorded:
            self.add(evaluation)

    def __len__(self) -> int:
        """How many evaluations there are."""
        return len(self._evaluations)

    def __contains__(self, schedule_hash: str) -> bool:
        """Whether there is an evaluation of that very schedule."""
        return schedule_hash in self._evaluations

    def add(self, evaluation: Evaluation) -> None:
        """Take in a finished evaluation."""
        self._evaluations[evaluation.hash] = evaluation
        if evaluation.confirmed is not None:
            self._confirmed[evaluation.hash] = evaluation.confirmed
        self._computations[self.computation(evaluation.schedule)] = evaluation.hash
        self.counts[evaluation.state] += 1
        if self._front is not None and evaluation.state == "done":
            self._front = self._best([*self._front, self._stands(evaluation)])
        if evaluation.state == "done" and self._raced and evaluation.outcomes is not None:
            self._add_bar(evaluation.flops, unpack(evaluation.outcomes, evaluation.images))

    def find(self, schedule: PruningSchedule) -> Evaluation | None:
        """Return the evaluation of a schedule, or of another one that computes the same."""
        known = self._computations.get(self.computation(schedule))
        return None if known is None else self._evaluations[known]

    def computation(self, schedule: PruningSchedule) -> object:
        """Return what two schedules share if and only if they compute the same."""
        left = self._layout.tokens(schedule)
        # Of a step all counts but its ratio, in whose place is what it leaves.
        steps = tuple((replace(step, keep=1.0), left[step.after - 1]) for step in schedule.steps)
        return steps, schedule.method

    def bar(self, flops: int) -> NDArray[np.bool_] | None:
        """Return on which images the best point of at most `flops` is right; None if there is nothing to race."""
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
        """Let a confirmed score stand; it may be lower than the other one, and uncover points behind it."""
        self._confirmed[confirmation.schedule_hash] = confirmation
        self._front = None

    def front(self) -> list[Evaluation]:
        """Return the Pareto front by the standing scores."""
        if self._front is None:
            done = [evaluation for evaluation in self._evaluations.values() if evaluation.state == "done"]
            self._front = self._best([self._stands(evaluation) for evaluation in done])
        return self._front

    def _stands(self, evaluation: Evaluation) -> Evaluation:
        return replace(evaluation, confirmed=self._confirmed.get(evaluation.hash))

    def _best(self, evaluations: list[Evaluation]) -> list[Evaluation]:
        points = [[objective_value(evaluation, name) for name in self._objectives] for evaluation in evaluations]
        return [evaluations[i] for i in objectives_front(points, self._objectives)]

    def _add_bar(self, flops: int, outcomes: NDArray[np.bool_]) -> None:
        right = int(outcomes.sum())
        if any(cost <= flops and best >= right for cost, best, _ in self._bars):
            return
        kept = [bar for bar in self._bars if not (bar[0] >= flops and bar[1] <= right)]
        self._bars = sorted([*kept, (flops, right, outcomes)], key=lambda bar: bar[:2])


class Confirmer:
    """Which point of the front is to be measured again, on the images held back for it; for one thread.

    The best of many noisy scores is flattered, so a point's score may fall and uncover others behind it. The
    front counts as confirmed when all of it is, those others included.

    Args:
        standing: what is known, its confirmed scores included.
    """

    def __init__(self, standing: StudyState) -> None:
        self._standing = standing
        self._tried: set[str] = set()  # under way, or failed

    def next(self) -> PruningSchedule | None:
        """Return a schedule to confirm, the dense model's first; None if there is none now."""
        waiting = self._waiting()
        if not waiting:
            return None
        self._tried.add(waiting[0].hash)
        return waiting[0]

    @property
    def left(self) -> int:
        """How many are known to be missing."""
        return len(self._waiting())

    def _waiting(self) -> list[PruningSchedule]:
        front = self._standing.front()
        schedules = dict.fromkeys([PruningSchedule(), *(e.schedule for e in front)] if front else [])
        known = self._standing.confirmed.keys() | self._tried
        return [schedule for schedule in schedules if schedule.hash not in known]
