"""Groups of candidates, each claimed before it runs: those first that other drivers left, then new ones."""

from search.driver.proposer import Candidate, CandidateSource, Known, Proposer
from search.driver.records import Records
from search.driver.study_state import StudyState
from search.driver.trials import Trials
from spaces import PruningSchedule


class GroupBuilder:
    """Puts groups of candidates together, and learns what other drivers do; not thread-safe.

    Args:
        source: of the candidates.
        state: of the study.
        records: where schedules are claimed.
        trials: the trials in flight.

    Attributes:
        proposer: of the candidates.
        elsewhere: schedules that other drivers are running.
        exhausted: whether nothing new was found in the space.
    """

    def __init__(self, source: CandidateSource, state: StudyState, records: Records, trials: Trials) -> None:
        self._sampler, self._state, self._records, self._trials = source.sampler, state, records, trials
        self.proposer = Proposer(source, self._look_up, len(state))
        self.elsewhere = 0
        self.exhausted = False
        self._left = 0  # schedules that other drivers left
        self._group: list[Candidate] = []  # that is being put together

    def learn(self) -> None:
        """Take in what other drivers finished, are running, and left."""
        news = self._records.news()
        self.elsewhere, self._left = news.elsewhere, news.waiting
        for evaluation in news.finished:
            if evaluation.hash not in self._state:
                self._state.add(evaluation)
                self._sampler.restore([evaluation])

    def next(self, most: int, total: int) -> list[Candidate]:
        """Return up to `most` claimed candidates, of a study that is to have `total` evaluations; `learn` first."""
        under_way = sum(1 for _ in self._trials.candidates())
        most = min(most, total - len(self._state) - under_way - self.elsewhere)
        if most < 1:
            return []
        try:
            return self._build(most, total)
        finally:
            self._group = []

    def _build(self, most: int, total: int) -> list[Candidate]:
        left = self._records.take_over(most, total) if self._left else []
        self._group = [self.proposer.resume(evaluation) for evaluation in left]
        while len(self._group) < most:
            candidate = self.proposer.next()
            if candidate is None:
                self.exhausted = True
                break
            self._group.append(candidate)
        new = self._group[len(left) :]
        granted = self._records.claim([self.proposer.running(c) for c in new], total) if new else set()
        for candidate in new:
            if candidate.schedule.hash not in granted:  # another driver was faster
                self.elsewhere += 1
                self.proposer.tell(candidate, None)
        return self._group[: len(left)] + [c for c in new if c.schedule.hash in granted]

    def _look_up(self, schedule: PruningSchedule) -> Known | None:
        computation = self._state.computation(schedule)
        under_way = (*self._trials.candidates(), *self._group)
        if any(self._state.computation(candidate.schedule) == computation for candidate in under_way):
            return Known(None)
        known = self._state.find(schedule)
        if known is None and (known := self._records.evaluation(schedule.hash)):  # another driver's
            if known.state == "queued":
                return None
            if known.state == "running":
                return Known(None)
            self._state.add(known)
        return None if known is None else Known(known)
