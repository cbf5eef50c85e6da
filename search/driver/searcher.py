"""What Ray Tune asks during a search: which trial is next, and what becomes of its result.

Ray's own OptunaSearch is not used: it repeats schedules after a resume, loses results to a NaN, and knows neither a
budget nor a store.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from results import Evaluation, hypervolume
from search.driver.group_builder import GroupBuilder
from search.driver.progress import Snapshot
from search.driver.proposer import Candidate, CandidateSource
from search.driver.records import Records
from search.driver.study_state import Confirmer, StudyState
from search.driver.trial_results import confirmation_of, evaluation_of
from search.driver.trials import InFlightTrial, Timeouts, Trials
from search.evaluation.protocol import Failure, Measurement, confirm_task, search_task
from search.evaluation.race import Entry
from spaces import PruningSchedule
from spaces.errors import SearchError

FAILURES_IN_A_ROW = 5  # end the search


@dataclass(frozen=True)
class SearchPlan:
    """How far a search goes, and in which steps.

    Attributes:
        trials: evaluations that the study is to have in all.
        group: candidates in a trial.
        confirm: whether the front is confirmed in the end.
        timeouts: of candidates and confirmations.
        time_is_up: asked before each suggestion.
    """

    trials: int
    group: int
    confirm: bool = True
    timeouts: Timeouts = field(default_factory=Timeouts)
    time_is_up: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Reporting:
    """Whom a searcher reports to.

    Attributes:
        observe: called after each trial with the evaluations that were recorded since the last call.
        note: called with a line for the user.
    """

    observe: Callable[[Snapshot, Sequence[Evaluation]], None] = lambda snapshot, recorded: None
    note: Callable[[str], None] = lambda text: None


SILENT = Reporting()


class ScheduleSearcher(Searcher):
    """Suggests each schedule once, records each result, tells the sampler, and finally confirms the front.

    Tune calls `suggest` and `on_trial_complete` from the driver's main thread. An error in them is kept in `error`,
    to be raised when Tune has returned, since Tune would log it and go on.

    Args:
        source: of the candidates.
        state: of the study.
        records: where results go.
        plan: how far the search goes.
        reporting: whom it reports to.

    Attributes:
        trials: the trials in flight.
        ending: why no candidate is suggested any more; empty while there is more to do.
        error: what went wrong in here, if anything.
        evaluated: how many evaluations this run recorded.
    """

    def __init__(
        self,
        source: CandidateSource,
        state: StudyState,
        records: Records,
        plan: SearchPlan,
        reporting: Reporting = SILENT,
    ) -> None:
        super().__init__()
        self._state, self._records, self._plan, self._reporting = state, records, plan, reporting
        self.trials = Trials(plan.timeouts)
        self._groups = GroupBuilder(source, state, records, self.trials)
        self._confirmer = Confirmer(state)
        self._failures: list[str] = []  # in a row
        self._recorded: list[Evaluation] = []  # since the last report
        self._halted = False
        self.ending = ""
        self.error: Exception | None = None
        self.evaluated = 0

    @property
    def snapshot(self) -> Snapshot:
        """How far the search is."""
        front = self._state.front()
        points = [(e.flops_ratio, e.top1) for e in front if e.top1 is not None]
        return Snapshot(
            done=self._state.counts["done"],
            stopped=self._state.counts["stopped"],
            failed=self._state.counts["failed"],
            reused=self._groups.proposer.reused,
            trials=self._plan.trials,
            front=len(front),
            hypervolume=hypervolume(points, (1.0, 0.0)),
            unconfirmed=self._confirmer.left if self.ending and self._plan.confirm else None,
        )

    @property
    def complete(self) -> bool:
        """Whether the study has all its evaluations, and its front is confirmed."""
        return len(self._state) >= self._plan.trials and not (self._plan.confirm and self._confirmer.left)

    def halt(self, reason: str) -> None:
        """Suggest nothing more; what is in flight is still recorded. Safe to call from a signal handler."""
        self._halted = True
        self._end(reason)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next task as Tune's config, None for "ask again later", or that the search is over."""
        try:
            trial = None if self._halted else self._next_trial()
            if trial is None:
                # A trial in flight may have to run again; another driver may leave its schedules to this one.
                waits = self.trials.running or (self._groups.elsewhere and not self.ending)
                return None if waits and not self._halted else str(Searcher.FINISHED)
            self.trials.start(trial_id, trial)
            return self._task(trial)
        except Exception as error:
            self._fail(error)
            return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Record the result of a trial and tell the sampler."""
        trial = self.trials.finish(trial_id)
        if trial is None:
            return
        try:
            if error:
                self._worker_died(trial)
            elif result and "refused" in result:
                raise SearchError(result["refused"])  # nothing is recorded
            elif not result or "results" not in result:  # stopped before it ran
                for candidate in trial.group:
                    self._groups.proposer.tell(candidate, None)
            else:
                self._finished(trial, result["results"])
            self._report()
        except Exception as caught:
            self._fail(caught)
        finally:
            self.trials.free_slot()

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a search resumes from the store alone."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as in `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickle nothing: Tune pickles a searcher into its folder, and this one is never read back."""
        return {}

    # --- the next trial ---------------------------------------------------------------------------------

    def _next_trial(self) -> InFlightTrial | None:
        return self.trials.next_repeat() or self._next_search() or self._next_confirmation()

    def _next_search(self) -> InFlightTrial | None:
        self._groups.learn()
        if not self.ending and self._plan.time_is_up():
            self._end("the time budget is spent")
        if not self.ending and len(self._state) >= self._plan.trials:
            self._end(f"{self._plan.trials} evaluations are recorded")
        if self.ending:
            return None
        group = self._groups.next(self._plan.group, self._plan.trials)
        if self._groups.exhausted:
            self._end("the space is exhausted: nothing new was found in it")
        return InFlightTrial(group) if group else None

    def _next_confirmation(self) -> InFlightTrial | None:
        if not (self.ending and self._plan.confirm) or self.trials.searching:
            return None
        while schedule := self._confirmer.next():
            known = self._records.confirmation(schedule.hash)
            if known is None:
                return InFlightTrial(confirming=schedule)
            self._state.confirm(known)  # by another driver
        return None

    def _task(self, trial: InFlightTrial) -> dict[str, Any]:
        if trial.confirming is not None:
            return confirm_task(trial.confirming)
        if not self._state.race:
            return search_task([Entry(candidate.schedule) for candidate in trial.group])
        return search_task([Entry(c.schedule, self._state.bar(c.flops), c.flops) for c in trial.group])

    # --- its result -------------------------------------------------------------------------------------

    def _finished(self, trial: InFlightTrial, results: Sequence[Measurement | Failure]) -> None:
        if trial.confirming is not None:
            self._confirm(trial.confirming, results[0])
            return
        for candidate, result in zip(trial.group, results, strict=True):
            self._record(candidate, result)
        self.trials.account(trial, sum(r.forward_seconds for r in results if isinstance(r, Measurement)))

    def _worker_died(self, trial: InFlightTrial) -> None:
        """Let each schedule of the trial run again, alone; one that did so before has failed."""
        how = trial.how_it_ended
        if trial.confirming is not None:
            if not self.trials.repeat_confirmation(trial):
                text = trial.confirming.text
                self._reporting.note(f"schedule {text!r} could not be confirmed: its worker {how} twice")
            return
        for candidate in trial.group:
            failure = self.trials.failure(trial, candidate)
            if failure is not None:
                self._record(candidate, failure)
            elif self._records.retry(candidate.schedule.hash):
                self.trials.repeat(candidate)
                self._reporting.note(f"the worker of schedule {candidate.schedule.text!r} {how}; it runs again")
            else:  # another driver has taken it
                self._groups.proposer.tell(candidate, None)

    def _record(self, candidate: Candidate, result: Measurement | Failure) -> None:
        evaluation = self._records.record(evaluation_of(self._groups.proposer.running(candidate), result))
        if evaluation is None:  # another driver has taken it; its result will be news
            self._groups.proposer.tell(candidate, None)
            return
        self.evaluated += 1
        self._recorded.append(evaluation)
        self._state.add(evaluation)
        self._count_failures(evaluation)
        self._groups.proposer.tell(candidate, evaluation)

    def _count_failures(self, evaluation: Evaluation) -> None:
        if evaluation.state != "failed":
            self._failures.clear()
            return
        self._failures.append(f"{evaluation.schedule.text or 'dense'}: {evaluation.failure}: {evaluation.error}")
        if len(self._failures) >= FAILURES_IN_A_ROW:
            raise SearchError(f"{FAILURES_IN_A_ROW} evaluations failed in a row; the first, {self._failures[0]}")

    def _confirm(self, schedule: PruningSchedule, result: Measurement | Failure) -> None:
        if isinstance(result, Failure):
            text = schedule.text or "dense"
            self._reporting.note(f"schedule {text!r} could not be confirmed: {result.error}")
            return
        confirmation = confirmation_of(schedule, result)
        self._records.confirm(confirmation)
        self._state.confirm(confirmation)

    def _report(self) -> None:
        recorded, self._recorded = self._recorded, []
        self._reporting.observe(self.snapshot, recorded)

    def _end(self, reason: str) -> None:
        self.ending = self.ending or reason

    def _fail(self, error: Exception) -> None:
        self.error = self.error or error
        self.halt("an error")
