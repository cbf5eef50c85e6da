"""Searches without torch, Ray and SQL: a model as plain functions, and a store and workers in memory."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results import Evaluation
from results.records import Confirmation, News
from search.driver.progress import Snapshot
from search.driver.proposer import CandidateSource
from search.driver.searcher import Reporting, ScheduleSearcher, SearchPlan
from search.driver.study_state import StudyState
from search.driver.trials import Timeouts
from search.evaluation.protocol import CONFIRM, Failure, Measurement, pack, task_entries
from search.evaluation.race import GroupRace
from search.samplers.base import Draw, Sampler
from search.samplers.registry import make_sampler
from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
from spaces.parameters import Value
from spaces.published import starting_schedules
from spaces.space import SearchSpace, StagesSpace, make_space
from spaces.space_spec import SpaceSpec

LAYOUT = TokenLayout("fake", (28, 28), (Stage(12, 7, 7),), protected=1)
IMAGES, BATCH = 200, 20  # of a search
CONFIRM_IMAGES = 400
OBJECTIVES = ("top1", "flops")

Task = dict[str, Any]
Work = Callable[[Task], dict[str, Any] | None]


def flops(schedule: PruningSchedule) -> int:
    """A thousand FLOPs for each token that a block works on."""
    after = LAYOUT.tokens(schedule)
    return 1000 * sum([49, *after[:-1]])


def top1(schedule: PruningSchedule) -> float:
    """Early and strong pruning hurts; a dense model is right in 97 %."""
    lost = sum((1 - step.keep) ** 2 / step.after for step in schedule.steps)
    return max(0.0, 0.97 - 0.6 * lost - (0.05 if schedule.method.context == "drop" else 0.0))


def outcomes(schedule: PruningSchedule, images: int = IMAGES, problem: int = 0) -> NDArray[np.bool_]:
    """On which images a schedule is right: hard ones are hard for all, and each schedule has its own luck."""
    difficulty = np.random.default_rng([problem, images]).random(images)
    luck = np.random.default_rng([problem, images, int(schedule.hash, 16)]).random(images)
    right: NDArray[np.bool_] = difficulty + 0.3 * (luck - 0.5) < top1(schedule)
    return right


def space(text: str = "stages", budget: str = "0.8") -> SearchSpace:
    """A space over the fake model."""
    return make_space(text, LAYOUT, flops, FlopsBudget.parse(budget))


class _TwelveSchedules(StagesSpace):
    def schedule(self, values: Any) -> PruningSchedule:
        return PruningSchedule.of([(1 + int(11.999 * values["target"]), 0.5)])

    def values(self, schedule: PruningSchedule) -> None:
        return None


class _BeyondTheLimit(StagesSpace):
    def schedule(self, values: Any) -> PruningSchedule:
        return PruningSchedule()


def small_space() -> SearchSpace:
    """Twelve schedules, whatever the values: a step of 0.5 after one of the blocks 1 … 12."""
    return _TwelveSchedules(SpaceSpec.parse("stages"), LAYOUT, flops, FlopsBudget(1.0))


def broken_space() -> SearchSpace:
    """A space that returns the dense schedule, which costs more than its limit."""
    return _BeyondTheLimit(SpaceSpec.parse("stages"), LAYOUT, flops, FlopsBudget(0.8))


class MemoryRecords:
    """A study's evaluations in a list, and its confirmed scores by hash, for one driver alone."""

    def __init__(self, evaluations: Sequence[Evaluation] = ()) -> None:
        self.evaluations = list(evaluations)
        self.confirmations: dict[str, Confirmation] = {}

    def record(self, evaluation: Evaluation) -> Evaluation | None:
        """Append it unless its schedule is there."""
        if self.evaluation(evaluation.hash):
            return None
        self.evaluations.append(replace(evaluation, number=len(self.evaluations)))
        return self.evaluations[-1]

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Look it up."""
        return next((e for e in self.read() if e.hash == schedule_hash), None)

    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Grant what is new, as far as the total allows."""
        new = [e.hash for e in evaluations if not self.evaluation(e.hash)]
        return set(new[: trials - len(self.evaluations)])

    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Return none: nobody else is at work."""
        return []

    def retry(self, schedule_hash: str) -> bool:
        """Allow it."""
        return True

    def news(self) -> News:
        """Return what is recorded, none of it new."""
        return News(self.read(), elsewhere=0, waiting=0)

    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Look it up."""
        return self.confirmations.get(schedule_hash)

    def confirm(self, confirmation: Confirmation) -> Confirmation | None:
        """Keep the score."""
        self.confirmations[confirmation.schedule_hash] = confirmation
        return confirmation

    def read(self) -> list[Evaluation]:
        """Return the evaluations as a store does."""
        return [replace(e, confirmed=self.confirmations.get(e.hash)) for e in self.evaluations]

    def study_state(self, race: bool = True) -> StudyState:
        """Return what a driver that resumes knows."""
        dense = self.confirmations.get(PruningSchedule().hash)
        return StudyState(OBJECTIVES, LAYOUT, self.read(), dense, race=race)

    @property
    def states(self) -> list[str]:
        """The states in the order of recording."""
        return [evaluation.state for evaluation in self.evaluations]


def sampler(name: str, over: SearchSpace, *, seed: int = 0, trials: int = 40, recorded: int = 0) -> Sampler:
    """A sampler over a space."""
    return make_sampler(name, over, OBJECTIVES, seed=seed, trials=trials, recorded=recorded)


class ListeningSampler:
    """A sampler that keeps what it is asked and told, and may be stuck at one point."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.name, self.state, self.restore = sampler.name, sampler.state, sampler.restore
        self.asked = 0
        self.told: list[Evaluation | None] = []
        self.stuck: dict[str, Value] | None = None

    def ask(self, values: Mapping[str, Value] | None = None) -> Draw:
        """Count the question and pass it on."""
        self.asked += 1
        return self._sampler.ask(values or self.stuck)

    def tell(self, draw: Draw, evaluation: Evaluation | None) -> None:
        """Keep the answer and pass it on."""
        self.told.append(evaluation)
        self._sampler.tell(draw, evaluation)


@dataclass(frozen=True)
class Setup:
    """How a searcher of the tests differs from the default; the fields are those of what the session builds.

    Attributes:
        name: the sampler's.
        over: the space.
        starts: whether starting schedules come first.
    """

    name: str = "nsga2"
    seed: int = 0
    over: SearchSpace | None = None
    starts: bool = True
    race: bool = True
    group: int = 4
    confirm: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    time_is_up: Callable[[], bool] = lambda: False
    observe: Callable[[Snapshot], None] = lambda snapshot: None
    note: Callable[[str], None] = lambda text: None


def listening_searcher(
    records: MemoryRecords, *, trials: int, **options: Any
) -> tuple[ScheduleSearcher, ListeningSampler]:
    """A searcher over what `records` holds, as the session makes it, and its sampler; for options see `Setup`."""
    given = Setup(**options)
    chosen = given.over or space()
    proposing = sampler(given.name, chosen, seed=given.seed, trials=trials, recorded=len(records.evaluations))
    proposing.restore(records.read())
    listening = ListeningSampler(proposing)
    searching = ScheduleSearcher(
        CandidateSource(chosen, listening, starting_schedules(chosen) if given.starts else (), given.seed),
        records.study_state(given.race),
        records,
        SearchPlan(trials, given.group, given.confirm, given.timeouts, given.time_is_up),
        Reporting(lambda snapshot, recorded: given.observe(snapshot), given.note),
    )
    return searching, listening


def searcher(records: MemoryRecords, *, trials: int, **options: Any) -> ScheduleSearcher:
    """As `listening_searcher`, without the sampler."""
    return listening_searcher(records, trials=trials, **options)[0]


def worker(problem: int = 0, error: float = 0.05, batch: int = BATCH) -> Work:
    """A worker that never dies; it races as the evaluator does."""

    def work(task: Task) -> dict[str, Any]:
        schedules = [PruningSchedule.parse(text) for text in task["schedules"]]
        if task["task"] == CONFIRM:
            return {"results": [result(outcomes(schedule, CONFIRM_IMAGES, problem)) for schedule in schedules]}
        race = GroupRace(IMAGES, error, task_entries(task, IMAGES))
        found = [outcomes(schedule, problem=problem) for schedule in schedules]
        live = set(range(len(found)))
        for end in range(batch, IMAGES, batch):
            for beaten in race.lost([whole[:end] if i in live else whole for i, whole in enumerate(found)]):
                found[beaten] = found[beaten][:end]
                live.discard(beaten)
        return {"results": [result(whole, stopped=len(whole) < IMAGES) for whole in found]}

    return work


measured = worker()


def dies(when: set[int]) -> Work:
    """A worker that dies on the tasks of these numbers, from 0."""
    counter = itertools.count()
    return lambda task: None if next(counter) in when else measured(task)


def instead(results: Mapping[int, Measurement | Failure]) -> Work:
    """A worker that reports something else for the candidates of these numbers, from 0."""
    counter = itertools.count()

    def work(task: Task) -> dict[str, Any]:
        found = measured(task)
        assert found is not None
        return {"results": [results.get(next(counter), one) for one in found["results"]]}

    return work


def result(right: NDArray[np.bool_], stopped: bool = False) -> Measurement:
    """What a worker reports of one candidate."""
    accuracy = float(right.mean())
    return Measurement(
        top1=accuracy,
        loss=1 - accuracy,
        agreement=accuracy,
        images=len(right),
        outcomes=pack(right),
        stopped=stopped,
        estimate=accuracy if stopped else None,
        seconds=0.1,
        forward_seconds=0.0,
        latency_ms=1.0,
        latency_ratio=0.5,
    )


def failed(message: str = "NonFiniteError: logits are NaN", kind: str = "NONFINITE") -> Failure:
    """What a worker reports of a candidate that failed."""
    return Failure(kind, message, 0.1)


def drive(
    driven: ScheduleSearcher, *, workers: int = 1, work: Work = measured, shuffle: int | None = None
) -> list[Task]:
    """Play Tune: keep `workers` tasks in flight; return all tasks in the order in which they were suggested.

    Args:
        driven: asked and told.
        workers: tasks at a time.
        work: the result of a task; None is a worker that died.
        shuffle: seed of the order in which results arrive; None: as they were suggested.
    """
    chance = None if shuffle is None else random.Random(shuffle)
    in_flight: list[tuple[str, Task]] = []
    suggested: list[Task] = []
    while True:
        answer: Any = None
        while len(in_flight) < workers and isinstance(answer := driven.suggest(f"trial-{len(suggested)}"), dict):
            in_flight.append((f"trial-{len(suggested)}", answer))
            suggested.append(answer)
        if not in_flight:
            assert answer == "FINISHED", "it waits for nothing"
            return suggested
        trial, task = in_flight.pop(chance.randrange(len(in_flight)) if chance else 0)
        came = work(task)
        driven.on_trial_complete(trial, result=came, error=came is None)


def searched(tasks: Sequence[Task]) -> list[str]:
    """The schedules that were searched, group after group."""
    return [text for task in tasks if task["task"] != CONFIRM for text in task["schedules"]]


def confirmed(tasks: Sequence[Task]) -> list[str]:
    """The schedules that were confirmed."""
    return [text for task in tasks if task["task"] == CONFIRM for text in task["schedules"]]
