"""Which candidate comes next, and what becomes of it: the searcher that Ray Tune asks.

Why not Ray's own OptunaSearch: it repeats itself after a resume, loses results to a NaN, and knows
neither a budget nor a store.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ray.tune.search import Searcher

from results import Evaluation, hypervolume, pareto_front
from search.progress import Snapshot
from search.sampler import Draw, Sampler
from spaces import PruningSchedule
from spaces.errors import SearchError
from spaces.space import ChoiceParameter, FloatParameter, SearchSpace, Value

PUBLISHED = "published"
PATIENCE = 20  # known proposals in a row before points are drawn at random
RANDOM_DRAWS = 1000  # known random points in a row before the space counts as exhausted
FAILURES_IN_A_ROW = 5  # end the search
MOST_DEATHS = 2  # of worker processes on one schedule, before it counts as KILLED


class Records(Protocol):
    """The study's place in the store, for the driver alone; every method may raise a StoreError."""

    def record(self, evaluation: Evaluation) -> bool:
        """Write it; False if the schedule is there already."""

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Return what is recorded of a schedule."""


@dataclass(frozen=True)
class Candidate:
    """A schedule on its way, with the draw it came from; published ones may have none.

    `deaths` counts the worker processes that died on it.
    """

    schedule: PruningSchedule
    flops: int
    origin: str
    draw: Draw | None
    deaths: int = 0


class ScheduleSearcher(Searcher):
    """Suggests each schedule once, records each result, and then tells the sampler.

    Tune calls `suggest` and `on_trial_complete` from the driver's main thread. What goes wrong in them
    is kept in `error`, to be raised when Tune has come back: Tune would log it and go on.

    Args:
        space: where candidates come from.
        sampler: proposes points of it, restored from the recorded evaluations.
        flops: what a schedule costs, from a table.
        dense_flops: of the dense model.
        trials: evaluations that the study shall have in all.
        recorded: what it has already.
        records: where new ones go.
        published: schedules to try first; those above the budget are passed over.
        seed: of the random draws that come after many known candidates.
        deadline: asked before each suggestion whether the time is up.
        observe: called after each evaluation.
        note: called with a line for the user.

    Attributes:
        ending: why nothing more is suggested; empty while there is more to do.
        error: what went wrong in here, if anything.
        evaluated: how many evaluations this run recorded.
        overheads: for each of them, the seconds from the moment its slot was free (another evaluation was
            recorded in it, or the search began) until it was recorded itself, less its forward passes.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: Sampler,
        *,
        flops: Callable[[PruningSchedule], int],
        dense_flops: int,
        trials: int,
        recorded: Iterable[Evaluation],
        records: Records,
        published: Sequence[PruningSchedule] = (),
        seed: int = 0,
        deadline: Callable[[], bool] = lambda: False,
        observe: Callable[[Snapshot], None] = lambda snapshot: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self._space, self._sampler, self._flops, self._dense_flops = space, sampler, flops, dense_flops
        self._trials, self._records, self._deadline, self._observe = trials, records, deadline, observe
        self._note = note
        self._known = {evaluation.hash: evaluation for evaluation in recorded}
        self._published = list(published)
        self._again: list[Candidate] = []  # their worker died; whose fault it was is not known yet
        self._flying: dict[str, Candidate] = {}
        self._slots: dict[str, float] = {}  # since when the slot of each candidate was free
        self._random = random.Random(f"{seed}:{len(self._known)}")
        self._done = sum(e.state == "done" for e in self._known.values())
        self._failed = len(self._known) - self._done
        self._reused = 0
        self._front: list[tuple[float, float]] = []
        for evaluation in self._known.values():
            self._extend_front(evaluation)
        self._failures: list[str] = []
        self.ending = ""
        self.error: Exception | None = None
        self.evaluated = 0
        self.overheads: list[float] = []
        self._began = time.monotonic()
        self._free: list[float] = []  # since when each slot without a candidate has had none

    @property
    def snapshot(self) -> Snapshot:
        """How far the search is."""
        return Snapshot(
            done=self._done,
            failed=self._failed,
            reused=self._reused,
            trials=self._trials,
            front=len(self._front),
            hypervolume=hypervolume(self._front, (1.0, 0.0)),
        )

    def stop(self, reason: str) -> None:
        """Suggest nothing more; what is under way is still recorded. Safe to call from a signal handler."""
        self.ending = self.ending or reason

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next candidate as Tune's config, None for "ask again", or that the search is over."""
        try:
            if not self.ending and self._deadline():
                self.stop("the time budget is spent")
            if not self.ending and self._done + self._failed >= self._trials:
                self.stop(f"{self._trials} evaluations are recorded")
            if self.ending:
                return str(Searcher.FINISHED)
            if self._again:
                return self._send(trial_id, self._again.pop(0))
            if self._done + self._failed + len(self._flying) >= self._trials:
                return None  # one of those under way may turn out to be known: another process's
            candidate = self._next()
        except Exception as error:
            self._give_up(error)
            return str(Searcher.FINISHED)
        if candidate is None:
            self.stop("the space is exhausted: nothing new was found in it")
            return str(Searcher.FINISHED)
        return self._send(trial_id, candidate)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Record what came of a candidate and tell the sampler."""
        candidate = self._flying.pop(trial_id, None)
        if candidate is None:
            return
        slot_free_at = self._slots.pop(trial_id)
        try:
            if error and candidate.deaths + 1 < MOST_DEATHS:
                self._again.append(replace(candidate, deaths=candidate.deaths + 1))
                self._note(f"the worker of schedule {candidate.schedule.text!r} died; it runs again")
                return
            if not error and (not result or "images" not in result):  # stopped before it ran
                self._tell(candidate, None)
                return
            evaluation = self._evaluation(candidate, {} if error or result is None else result)
            if self._records.record(evaluation):
                self.evaluated += 1
                forward = float((result or {}).get("forward_seconds") or 0.0)
                self.overheads.append(time.monotonic() - slot_free_at - forward)
                self._take_in(evaluation)
            else:
                self._take_in(self._records.evaluation(evaluation.hash) or evaluation)
            self._tell(candidate, evaluation)
            self._observe(self.snapshot)
        except Exception as caught:
            self._give_up(caught)
        finally:
            self._free.append(time.monotonic())

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store is the truth, and a search resumes from it alone."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as in `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave all behind: Tune pickles a searcher into its folder, and this one is never read back."""
        return {}

    def _send(self, trial_id: str, candidate: Candidate) -> dict[str, Any]:
        self._flying[trial_id] = candidate
        self._slots[trial_id] = self._free.pop(0) if self._free else self._began
        return {"schedule": candidate.schedule.text}

    def _next(self) -> Candidate | None:
        while self._published:
            schedule = self._published.pop(0)
            if self._flops(schedule) > self._space.limit or self._lookup(schedule):
                continue
            values = self._space.values(schedule)
            draw = self._sampler.ask(values) if values is not None else None
            return self._candidate(schedule, PUBLISHED, draw)
        for _ in range(PATIENCE):
            draw = self._sampler.ask()
            schedule = self._space.schedule(draw.values)
            known = self._lookup(schedule)
            if known is None:
                return self._candidate(schedule, self._sampler.name, draw)
            self._reused += known is not _FLYING
            self._sampler.tell(draw, None if known is _FLYING else known)
        for _ in range(RANDOM_DRAWS):
            values = self._random_values()
            schedule = self._space.schedule(values)
            if self._lookup(schedule) is None:
                return self._candidate(schedule, self._sampler.name, self._sampler.ask(values))
        return None

    def _lookup(self, schedule: PruningSchedule) -> Evaluation | None:
        """Return what is known of a schedule, `_FLYING` if it is under way, None if it is new."""
        name = schedule.hash
        if any(candidate.schedule == schedule for candidate in [*self._flying.values(), *self._again]):
            return _FLYING
        if name not in self._known and (found := self._records.evaluation(name)):
            self._take_in(found)  # another process searches this study, too
        return self._known.get(name)

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

    def _evaluation(self, candidate: Candidate, result: Mapping[str, Any]) -> Evaluation:
        draw = candidate.draw
        common: dict[str, Any] = {
            "schedule": candidate.schedule,
            "flops": candidate.flops,
            "flops_ratio": candidate.flops / self._dense_flops,
            "parameters": {} if draw is None else draw.values,
            "sampler_state": {} if draw is None else self._sampler.state(draw),
            "origin": candidate.origin,
            "seconds": result.get("seconds"),
        }
        if not result:
            message = "the worker process died twice on this schedule (killed, or out of memory)"
            return Evaluation(state="failed", failure="KILLED", error=message, **common)
        if result.get("failure"):
            return Evaluation(state="failed", failure=result["failure"], error=result["error"], **common)
        measured = {key: result[key] for key in ("top1", "loss", "agreement", "images", "latency_ms")}
        return Evaluation(state="done", **measured, **common)

    def _take_in(self, evaluation: Evaluation) -> None:
        self._known[evaluation.hash] = evaluation
        if evaluation.state == "done":
            self._done += 1
            self._failures.clear()
            self._extend_front(evaluation)
            return
        self._failed += 1
        self._failures.append(f"{evaluation.schedule.text or 'dense'}: {evaluation.failure}: {evaluation.error}")
        if len(self._failures) >= FAILURES_IN_A_ROW:
            raise SearchError(f"{FAILURES_IN_A_ROW} evaluations failed in a row; the first, {self._failures[0]}")

    def _extend_front(self, evaluation: Evaluation) -> None:
        if evaluation.state == "done" and evaluation.top1 is not None:
            points = [*self._front, (evaluation.flops_ratio, evaluation.top1)]
            self._front = [points[i] for i in pareto_front(points)]

    def _tell(self, candidate: Candidate, evaluation: Evaluation | None) -> None:
        if candidate.draw is not None:
            self._sampler.tell(candidate.draw, evaluation)

    def _give_up(self, error: Exception) -> None:
        self.error = self.error or error
        self.stop("an error")


_FLYING = Evaluation(PruningSchedule(), flops=0, flops_ratio=0.0, state="running")
