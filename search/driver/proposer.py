"""Which candidate is next: the starting schedules first, then the sampler's; none that is known already."""

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
MOST_KNOWN = 20  # known proposals in a row before points are drawn at random
RANDOM_DRAWS = 1000  # known random points in a row before the space counts as exhausted


@dataclass(frozen=True)
class Candidate:
    """A schedule that is to be evaluated.

    Attributes:
        schedule: to evaluate.
        flops: its cost.
        origin: who proposed it: `START`, or the sampler's name.
        draw: the sampler's; None for a starting schedule that is no point of the space.
        deaths: of worker processes on it.
    """

    schedule: PruningSchedule
    flops: int
    origin: str
    draw: Draw | None
    deaths: int = 0


@dataclass(frozen=True)
class Known:
    """A schedule that needs no evaluation: it has one, or None while it is under way."""

    evaluation: Evaluation | None


@dataclass(frozen=True)
class CandidateSource:
    """Where candidates come from.

    Attributes:
        space: of all candidates.
        sampler: proposes points of it; restored from the recorded evaluations.
        starts: schedules to try first; those above the budget are skipped.
        seed: of the random draws that follow many known candidates.
    """

    space: SearchSpace
    sampler: Sampler
    starts: Sequence[PruningSchedule] = ()
    seed: int = 0


class Proposer:
    """Proposes each computation once; not thread-safe.

    Args:
        source: of the candidates.
        look_up: returns what is known of a schedule, or None.
        recorded: evaluations that the study has at the start.

    Attributes:
        reused: how many proposals were known.
    """

    def __init__(
        self, source: CandidateSource, look_up: Callable[[PruningSchedule], Known | None], recorded: int = 0
    ) -> None:
        self._space, self._sampler, self._look_up = source.space, source.sampler, look_up
        self._starts = list(source.starts)
        self._random = random.Random(f"{source.seed}:{recorded}")
        self.reused = 0

    def next(self) -> Candidate | None:
        """Return a new candidate; None if the space seems to hold none."""
        while self._starts:
            schedule = self._starts.pop(0)
            if self._space.flops(schedule) > self._space.limit or self._look_up(schedule):
                continue
            values = self._space.values(schedule)
            draw = self._sampler.ask(values) if values is not None else None
            return self._candidate(schedule, START, draw)
        for _ in range(MOST_KNOWN):
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

    def resume(self, evaluation: Evaluation) -> Candidate:
        """Return the candidate of an evaluation that was begun and not finished."""
        draw = self._sampler.ask(evaluation.parameters) if evaluation.parameters else None
        return self._candidate(evaluation.schedule, evaluation.origin, draw)

    def running(self, candidate: Candidate) -> Evaluation:
        """Return what is known of a candidate before it has run, as an evaluation that is running."""
        draw = candidate.draw
        return Evaluation(
            candidate.schedule,
            flops=candidate.flops,
            flops_ratio=candidate.flops / self._space.dense_flops,
            state="running",
            parameters={} if draw is None else draw.values,
            sampler_state={} if draw is None else self._sampler.state(draw),
            origin=candidate.origin,
        )

    def tell(self, candidate: Candidate, evaluation: Evaluation | None) -> None:
        """Tell the sampler the result of a candidate; None if there is none."""
        if candidate.draw is not None:
            self._sampler.tell(candidate.draw, evaluation)

    def _candidate(self, schedule: PruningSchedule, origin: str, draw: Draw | None) -> Candidate:
        flops = self._space.flops(schedule)
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
