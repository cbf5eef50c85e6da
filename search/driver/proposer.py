"""Which candidate is next: starting schedules first, then the sampler's; none that is known already."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from results import Evaluation
from search.samplers.base import Draw, Sampler
from spaces import PruningSchedule
from spaces.errors import SearchError
from spaces.parameters import ChoiceParameter, FloatParameter, Value
from spaces.space import SearchSpace

START = "start"  # origin of a schedule that was tried before anything was proposed
PATIENCE = 20  # known proposals in a row before points are drawn at random
RANDOM_DRAWS = 1000  # known random points in a row before the space counts as exhausted


@dataclass(frozen=True)
class Candidate:
    """A schedule on its way, with the draw it came from; starting ones may have none.

    `deaths` counts the worker processes that died on it.
    """

    schedule: PruningSchedule
    flops: int
    origin: str
    draw: Draw | None
    deaths: int = 0


@dataclass(frozen=True)
class Known:
    """A schedule that needs no evaluation: its record, or None while it is under way."""

    evaluation: Evaluation | None


class Proposer:
    """Proposes each computation once; for one thread.

    Args:
        space: where candidates come from.
        sampler: proposes points of it, restored from the recorded evaluations.
        flops: what a schedule costs.
        look_up: what is known of a schedule, or None.
        starts: schedules to try first; those above the budget are passed over.
        seed: of the random draws that come after many known candidates.

    Attributes:
        reused: how many proposals were known.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: Sampler,
        flops: Callable[[PruningSchedule], int],
        look_up: Callable[[PruningSchedule], Known | None],
        starts: Sequence[PruningSchedule],
        seed: str,
    ) -> None:
        self._space, self._sampler, self._flops, self._look_up = space, sampler, flops, look_up
        self._starts = list(starts)
        self._random = random.Random(seed)
        self.reused = 0

    def next(self) -> Candidate | None:
        """Return a new candidate; None if none was found in the space."""
        while self._starts:
            schedule = self._starts.pop(0)
            if self._flops(schedule) > self._space.limit or self._look_up(schedule):
                continue
            values = self._space.values(schedule)
            draw = self._sampler.ask(values) if values is not None else None
            return self._candidate(schedule, START, draw)
        for _ in range(PATIENCE):
            draw = self._sampler.ask()
            schedule = self._space.schedule(draw.values)
            known = self._look_up(schedule)
            if known is None:
                return self._candidate(schedule, self._sampler.name, draw)
            self.reused += known.evaluation is not None
            self._sampler.tell(draw, known.evaluation)
        for _ in range(RANDOM_DRAWS):
            values = self._random_values()
            schedule = self._space.schedule(values)
            if self._look_up(schedule) is None:
                return self._candidate(schedule, self._sampler.name, self._sampler.ask(values))
        return None

    def again(self, evaluation: Evaluation) -> Candidate:
        """Return the candidate that an evaluation was, which was begun and not finished."""
        draw = self._sampler.ask(evaluation.parameters) if evaluation.parameters else None
        return self._candidate(evaluation.schedule, evaluation.origin, draw)

    def _candidate(self, schedule: PruningSchedule, origin: str, draw: Draw | None) -> Candidate:
        flops = self._flops(schedule)
        if flops > self._space.limit:
            raise SearchError(
                f"schedule {schedule.text!r} costs {flops:,} FLOPs, above the limit of {self._space.limit:,}: "
                f"space {self._space.text!r} is at fault; please report it"
            )
        return Candidate(schedule, flops, origin, draw)

    def _random_values(self) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name, parameter in self._space.parameters.items():
            if isinstance(parameter, ChoiceParameter):
                values[name] = self._random.choice(parameter.choices)
            elif isinstance(parameter, FloatParameter):
                values[name] = self._random.uniform(parameter.low, parameter.high)
            else:
                values[name] = self._random.randint(parameter.low, parameter.high)
        return values
