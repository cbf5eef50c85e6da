"""What Ray Tune asks: which task is next, and what becomes of it.

Why not Ray's own OptunaSearch: it repeats itself after a resume, loses results to a NaN, and knows
neither a budget nor a store.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ray.tune.search import Searcher

from results import Evaluation, hypervolume
from results.records import Confirmation
from search.driver.progress import Snapshot
from search.driver.proposer import Candidate, Known, Proposer
from search.driver.records import Records
from search.driver.study_state import Confirmer, StudyState
from search.evaluation.protocol import confirm_task, search_task
from search.samplers.base import Sampler
from spaces import PruningSchedule
from spaces.errors import SearchError
from spaces.space import SearchSpace

FAILURES_IN_A_ROW = 5  # end the search
MOST_DEATHS = 2  # of worker processes on one schedule, before it counts as KILLED


@dataclass
class Flight:
    """A trial under way: a brood of candidates, or a schedule that is confirmed.

    `since`: when the slot it takes was free.
    """

    brood: list[Candidate]
    confirming: PruningSchedule | None
    since: float
    deaths: int = 0
    late: bool = False  # its worker was killed for its slowness


class ScheduleSearcher(Searcher):
    """Suggests each schedule once, records each result, tells the sampler, and at last confirms the front.

    Tune calls `suggest` and `on_trial_complete` from the driver's main thread. What goes wrong in them
    is kept in `error`, to be raised when Tune has come back: Tune would log it and go on.

    Args:
        space: where candidates come from.
        sampler: proposes points of it, restored from the recorded evaluations.
        flops: what a schedule costs, from a table.
        dense_flops: of the dense model.
        trials: evaluations that the study shall have in all.
        standing: what it has already.
        records: where new ones go.
        brood: candidates in a trial.
        starts: schedules to try first; those above the budget are passed over.
        seed: of the random draws that come after many known candidates.
        race: whether candidates race against the front.
        confirm: whether the front is confirmed in the end.
        timeouts: longest seconds of one candidate, and of a confirmation.
        deadline: asked before each suggestion whether the time is up.
        observe: called after each trial.
        note: called with a line for the user.

    Attributes:
        ending: why no candidate is suggested any more; empty while there is more to do.
        error: what went wrong in here, if anything.
        evaluated: how many evaluations this run recorded.
        overheads: for each trial, the seconds from the moment its slot was free (another trial was recorded in
            it, or the search began) until it was recorded itself, less its forward passes, for each candidate.
        forwards: the seconds of these forward passes, for each candidate.
    """

    def __init__(
        self,
        space: SearchSpace,
        sampler: Sampler,
        *,
        flops: Callable[[PruningSchedule], int],
        dense_flops: int,
        trials: int,
        standing: StudyState,
        records: Records,
        brood: int,
        starts: Sequence[PruningSchedule] = (),
        seed: int = 0,
        race: bool = True,
        confirm: bool = True,
        timeouts: tuple[float, float] = (inf, inf),
        deadline: Callable[[], bool] = lambda: False,
        observe: Callable[[Snapshot], None] = lambda snapshot: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self._sampler, self._dense_flops = sampler, dense_flops
        self._trials, self._standing, self._records = trials, standing, records
        self._brood, self._race, self._confirm = brood, race, confirm
        self._deadline, self._observe, self._note = deadline, observe, note
        self._timeouts = timeouts
        self._proposer = Proposer(space, sampler, flops, self._look_up, starts, f"{seed}:{len(standing)}")
        self._confirmer = Confirmer(standing)
        self._again: list[Flight] = []  # their worker died; whose fault it was is not known yet
        self._flying: dict[str, Flight] = {}
        self._hatching: list[Candidate] = []  # of the brood that is put together
        self._elsewhere = 0  # schedules that other drivers are running
        self._failures: list[str] = []
        self._halted = False
        self.ending = ""
        self.error: Exception | None = None
        self.evaluated = 0
        self.overheads: list[float] = []
        self.forwards: list[float] = []
        self._began = time.monotonic()
        self._free: list[float] = []  # since when each slot without a trial has had none

    @property
    def snapshot(self) -> Snapshot:
        """How far the search is."""
        front = self._standing.front()
        points = [(e.flops_ratio, e.reported.top1) for e in front if e.reported.top1 is not None]
        return Snapshot(
            done=self._standing.counts["done"],
            stopped=self._standing.counts["stopped"],
            failed=self._standing.counts["failed"],
            reused=self._proposer.reused,
            trials=self._trials,
            front=len(front),
            hypervolume=hypervolume(points, (1.0, 0.0)),
            unconfirmed=self._confirmer.left if self.ending and self._confirm else None,
        )

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do for the study."""
        return len(self._standing) >= self._trials and not (self._confirm and self._confirmer.left)

    def halt(self, reason: str) -> None:
        """Suggest nothing more; what is under way is still recorded. Safe to call from a signal handler."""
        self._halted = True
        self._end(reason)

    def time_limit(self, trial_id: str) -> float | None:
        """Return how long a trial may take; None if it is not under way."""
        flight = self._flying.get(trial_id)
        if flight is None:
            return None
        return self._timeouts[1] if flight.confirming is not None else self._timeouts[0] * len(flight.brood)

    def time_out(self, trial_id: str) -> None:
        """Learn that a trial's worker is about to be killed for its slowness."""
        self._flying[trial_id].late = True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next task as Tune's config, None for "ask again", or that the search is over."""
        try:
            flight = None if self._halted else self._next_search() or self._next_confirmation()
            if flight is None:
                # What is under way may die and fly again, turn out to be known, or uncover what is to be confirmed;
                # what is under way elsewhere may be left to this driver.
                waits = self._flying or (self._elsewhere and not self.ending)
                return None if waits and not self._halted else str(Searcher.FINISHED)
            flight.since = self._free.pop(0) if self._free else self._began
            self._flying[trial_id] = flight
            return self._task(flight)
        except Exception as error:
            self._give_up(error)
            return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Record what came of a task and tell the sampler."""
        flight = self._flying.pop(trial_id, None)
        if flight is None:
            return
        try:
            if error:
                self._died(flight)
            elif result and "refused" in result:
                raise SearchError(result["refused"])  # nothing is recorded of it
            elif not result or "results" not in result:  # stopped before it ran
                for candidate in flight.brood:
                    self._tell(candidate, None)
            elif flight.confirming is not None:
                self._confirmed(flight.confirming, result["results"][0])
            else:
                for candidate, measured in zip(flight.brood, result["results"], strict=True):
                    self._evaluated(candidate, measured)
                forward = sum(float(measured.get("forward_seconds", 0.0)) for measured in result["results"])
                spent = time.monotonic() - flight.since - forward
                self.overheads += [spent / len(flight.brood)] * len(flight.brood)
                self.forwards += [forward / len(flight.brood)] * len(flight.brood)
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

    # --- what is next -----------------------------------------------------------------------------------

    def _next_search(self) -> Flight | None:
        if self._again:
            return self._again.pop(0)
        waiting = self._learn()
        if not self.ending and self._deadline():
            self._end("the time budget is spent")
        if not self.ending and len(self._standing) >= self._trials:
            self._end(f"{self._trials} evaluations are recorded")
        if self.ending:
            return None
        room = self._trials - len(self._standing) - self._under_way() - self._elsewhere
        try:
            brood = self._hatch(min(self._brood, room), waiting)
            return Flight(brood, None, 0.0) if brood else None
        finally:
            self._hatching = []

    def _hatch(self, most: int, waiting: int) -> list[Candidate]:
        """Return up to `most` candidates that are claimed: those first that wait to be run again."""
        if most < 1:
            return []
        taken = self._records.take_over(most, self._trials) if waiting else []
        self._hatching = [self._proposer.again(evaluation) for evaluation in taken]
        while len(self._hatching) < most:
            candidate = self._proposer.next()
            if candidate is None:
                self._end("the space is exhausted: nothing new was found in it")
                break
            self._hatching.append(candidate)
        fresh = self._hatching[len(taken) :]
        beforehand = [Evaluation(state="running", **self._beforehand(candidate)) for candidate in fresh]
        granted = self._records.claim(beforehand, self._trials) if fresh else set()
        for candidate in fresh:
            if candidate.schedule.hash not in granted:  # another driver was faster
                self._elsewhere += 1
                self._tell(candidate, None)
        return self._hatching[: len(taken)] + [c for c in fresh if c.schedule.hash in granted]

    def _learn(self) -> int:
        """Take in what other drivers finished; return how many schedules wait to be run again."""
        news = self._records.news()
        self._elsewhere = news.elsewhere
        for evaluation in news.finished:
            if evaluation.hash not in self._standing:
                self._standing.add(evaluation)
                self._sampler.restore([evaluation])
        return news.waiting

    def _next_confirmation(self) -> Flight | None:
        searching = any(flight.confirming is None for flight in self._flying.values())
        if not (self.ending and self._confirm) or searching:
            return None
        while schedule := self._confirmer.next():
            known = self._records.confirmation(schedule.hash)
            if known is None:
                return Flight([], schedule, 0.0)
            self._standing.confirm(known)  # by another driver
        return None

    def _candidates(self) -> Iterator[Candidate]:
        """Yield what is under way."""
        for flight in [*self._flying.values(), *self._again]:
            yield from flight.brood
        yield from self._hatching

    def _under_way(self) -> int:
        return sum(1 for _ in self._candidates())

    def _look_up(self, schedule: PruningSchedule) -> Known | None:
        computation = self._standing.computation(schedule)
        if any(self._standing.computation(candidate.schedule) == computation for candidate in self._candidates()):
            return Known(None)
        known = self._standing.find(schedule)
        if known is None and (known := self._records.evaluation(schedule.hash)):  # another driver's
            if known.state == "queued":
                return None
            if known.state == "running":
                return Known(None)
            self._standing.add(known)
        return None if known is None else Known(known)

    def _task(self, flight: Flight) -> dict[str, Any]:
        if flight.confirming is not None:
            return confirm_task(flight.confirming)
        if not self._race:
            return search_task([(candidate.schedule, None, None) for candidate in flight.brood])
        return search_task([(c.schedule, c.flops, self._standing.bar(c.flops)) for c in flight.brood])

    # --- what came of it --------------------------------------------------------------------------------

    def _died(self, flight: Flight) -> None:
        """Let what a dead worker had under way fly again, each candidate alone; give up what did so before."""
        how = "took too long" if flight.late else "died"
        if flight.confirming is not None:
            if flight.deaths + 1 < MOST_DEATHS:
                self._again.append(replace(flight, deaths=flight.deaths + 1, late=False))
            else:
                self._note(f"schedule {flight.confirming.text!r} could not be confirmed: its worker {how} twice")
            return
        for candidate in flight.brood:
            if candidate.deaths + 1 < MOST_DEATHS and not self._records.retry(candidate.schedule.hash):
                self._tell(candidate, None)
            elif candidate.deaths + 1 < MOST_DEATHS:
                self._again.append(Flight([replace(candidate, deaths=candidate.deaths + 1)], None, 0.0))
                self._note(f"the worker of schedule {candidate.schedule.text!r} {how}; it runs again")
            elif flight.late:
                message = f"it took longer than {self._timeouts[0]:g} s, also alone; see --trial-timeout"
                self._evaluated(candidate, {"failure": "TIMEOUT", "error": message, "seconds": None})
            else:
                message = "the worker process died twice on this schedule (killed, or out of memory)"
                self._evaluated(candidate, {"failure": "KILLED", "error": message, "seconds": None})

    def _evaluated(self, candidate: Candidate, result: Mapping[str, Any]) -> None:
        evaluation = self._evaluation(candidate, result)
        if self._records.record(evaluation):
            self.evaluated += 1
            self._take_in(evaluation)
            self._tell(candidate, evaluation)
        else:
            self._tell(candidate, None)  # what came of it there is news

    def _beforehand(self, candidate: Candidate) -> dict[str, Any]:
        """Return what is known of a candidate before it has run."""
        draw = candidate.draw
        return {
            "schedule": candidate.schedule,
            "flops": candidate.flops,
            "flops_ratio": candidate.flops / self._dense_flops,
            "parameters": {} if draw is None else draw.values,
            "sampler_state": {} if draw is None else self._sampler.state(draw),
            "origin": candidate.origin,
        }

    def _evaluation(self, candidate: Candidate, result: Mapping[str, Any]) -> Evaluation:
        common = self._beforehand(candidate) | {"seconds": result["seconds"]}
        if result.get("failure"):
            return Evaluation(state="failed", failure=result["failure"], error=result["error"], **common)
        names = ("top1", "loss", "agreement", "images", "latency_ms", "latency_ratio", "outcomes", "estimate")
        state = "stopped" if result["stopped"] else "done"
        return Evaluation(state=state, **{name: result[name] for name in names}, **common)

    def _take_in(self, evaluation: Evaluation) -> None:
        self._standing.add(evaluation)
        if evaluation.state != "failed":
            self._failures.clear()
            return
        self._failures.append(f"{evaluation.schedule.text or 'dense'}: {evaluation.failure}: {evaluation.error}")
        if len(self._failures) >= FAILURES_IN_A_ROW:
            raise SearchError(f"{FAILURES_IN_A_ROW} evaluations failed in a row; the first, {self._failures[0]}")

    def _confirmed(self, schedule: PruningSchedule, result: Mapping[str, Any]) -> None:
        if result.get("failure"):
            self._note(f"schedule {schedule.text or 'dense'!r} could not be confirmed: {result['error']}")
            return
        names = ("top1", "loss", "agreement", "images", "seconds", "latency_ms", "latency_ratio")
        confirmation = Confirmation(schedule.hash, **{name: result[name] for name in names})
        self._records.confirm(confirmation)
        self._standing.confirm(confirmation)

    def _tell(self, candidate: Candidate, evaluation: Evaluation | None) -> None:
        if candidate.draw is not None:
            self._sampler.tell(candidate.draw, evaluation)

    def _end(self, reason: str) -> None:
        self.ending = self.ending or reason

    def _give_up(self, error: Exception) -> None:
        self.error = self.error or error
        self.halt("an error")
