"""A model's cost and accuracy as plain functions, a store and workers in memory: searches without torch and Ray."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results import Evaluation
from results.records import Confirmation, News
from search.driver.searcher import ScheduleSearcher
from search.driver.study_state import StudyState
from search.evaluation.protocol import CONFIRM, pack, unpack
from search.evaluation.race import BroodRace
from search.samplers.base import Sampler
from search.samplers.registry import make_sampler
from spaces import FlopsBudget, PruningSchedule, Stage, TokenLayout
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

    def record(self, evaluation: Evaluation) -> bool:
        """Append it unless its schedule is there."""
        if self.evaluation(evaluation.hash):
            return False
        self.evaluations.append(evaluation)
        return True

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

    def confirm(self, confirmation: Confirmation) -> None:
        """Keep the score."""
        self.confirmations[confirmation.schedule_hash] = confirmation

    def read(self) -> list[Evaluation]:
        """Return the evaluations as a store does."""
        return [replace(e, confirmed=self.confirmations.get(e.hash)) for e in self.evaluations]

    def standing(self) -> StudyState:
        """Return what a driver makes of them."""
        return StudyState(OBJECTIVES, LAYOUT, self.read(), self.confirmations.get(PruningSchedule().hash))

    @property
    def states(self) -> list[str]:
        """The states in the order of recording."""
        return [evaluation.state for evaluation in self.evaluations]


def sampler(name: str, over: SearchSpace, *, seed: int = 0, trials: int = 40, recorded: int = 0) -> Sampler:
    """A sampler over a space."""
    return make_sampler(name, over, OBJECTIVES, seed=seed, trials=trials, recorded=recorded)


def searcher(
    records: MemoryRecords,
    *,
    trials: int,
    name: str = "nsga2",
    seed: int = 0,
    over: SearchSpace | None = None,
    starts: bool = True,
    **options: Any,
) -> ScheduleSearcher:
    """A searcher over what `records` holds, as the runner makes it; it does not confirm unless asked to."""
    chosen = over or space()
    proposing = sampler(name, chosen, seed=seed, trials=trials, recorded=len(records.evaluations))
    proposing.restore(records.read())
    return ScheduleSearcher(
        chosen,
        proposing,
        flops=flops,
        dense_flops=flops(PruningSchedule()),
        trials=trials,
        standing=records.standing(),
        records=records,
        starts=starting_schedules(chosen) if starts else (),
        seed=seed,
        **({"confirm": False, "brood": 4} | options),
    )


def worker(problem: int = 0, error: float = 0.05, batch: int = BATCH) -> Work:
    """A worker that never dies; it races as the evaluator does."""

    def work(task: Task) -> dict[str, Any]:
        schedules = [PruningSchedule.parse(text) for text in task["schedules"]]
        if task["task"] == CONFIRM:
            return {"results": [result(outcomes(schedule, CONFIRM_IMAGES, problem)) for schedule in schedules]}
        bars = [None if bits is None else unpack(bits, IMAGES) for bits in task["bars"]]
        race = BroodRace(IMAGES, error, bars, task["flops"])
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
    """A worker that dies at the tasks of these numbers, from 0."""
    counter = itertools.count()
    return lambda task: None if next(counter) in when else measured(task)


def instead(results: Mapping[int, dict[str, Any]]) -> Work:
    """A worker that reports something else of the candidates of these numbers, from 0."""
    counter = itertools.count()

    def work(task: Task) -> dict[str, Any]:
        found = measured(task)
        assert found is not None
        return {"results": [results.get(next(counter), one) for one in found["results"]]}

    return work


def result(right: NDArray[np.bool_], stopped: bool = False) -> dict[str, Any]:
    """What a worker reports of one candidate."""
    accuracy = float(right.mean())
    return {
        "top1": accuracy,
        "loss": 1 - accuracy,
        "agreement": accuracy,
        "images": len(right),
        "outcomes": pack(right),
        "stopped": stopped,
        "estimate": accuracy if stopped else None,
        "latency_ms": 1.0,
        "latency_ratio": 0.5,
        "seconds": 0.1,
        "forward_seconds": 0.0,
    }


def failed(message: str = "NonFiniteError: logits are NaN", failure: str = "NONFINITE") -> dict[str, Any]:
    """What a worker reports of a candidate that went wrong."""
    return {"failure": failure, "error": message, "seconds": 0.1}


def drive(
    subject: ScheduleSearcher, *, workers: int = 1, work: Work = measured, shuffle: int | None = None
) -> list[Task]:
    """Play Tune: keep `workers` tasks under way; return all tasks in the order in which they were suggested.

    Args:
        subject: asked and told.
        workers: tasks at a time.
        work: what a task comes to; None is a worker that died.
        shuffle: seed of the order in which tasks come back; None: as they were suggested.
    """
    chance = None if shuffle is None else random.Random(shuffle)
    flying: list[tuple[str, Task]] = []
    suggested: list[Task] = []
    while True:
        answer: Any = None
        while len(flying) < workers and isinstance(answer := subject.suggest(f"trial-{len(suggested)}"), dict):
            flying.append((f"trial-{len(suggested)}", answer))
            suggested.append(answer)
        if not flying:
            assert answer == "FINISHED", "it waits for nothing"
            return suggested
        trial, task = flying.pop(chance.randrange(len(flying)) if chance else 0)
        came = work(task)
        subject.on_trial_complete(trial, result=came, error=came is None)


def searched(tasks: Sequence[Task]) -> list[str]:
    """The schedules that were searched, brood after brood."""
    return [text for task in tasks if task["task"] != CONFIRM for text in task["schedules"]]


def confirmed(tasks: Sequence[Task]) -> list[str]:
    """The schedules that were confirmed."""
    return [text for task in tasks if task["task"] == CONFIRM for text in task["schedules"]]
