"""The trials in flight: their candidates, slots and time limits, and what runs again after a worker died."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

from search.driver.proposer import Candidate
from search.evaluation.protocol import Failure
from spaces import PruningSchedule

MOST_DEATHS = 2  # of worker processes on one schedule, which then counts as KILLED


@dataclass(frozen=True)
class Timeouts:
    """The longest seconds of one candidate, and of one confirmation."""

    candidate: float = inf
    confirmation: float = inf


@dataclass
class InFlightTrial:
    """A trial that evaluates a group of candidates, or confirms a schedule.

    Attributes:
        group: the candidates; none if a schedule is confirmed.
        confirming: the schedule that is confirmed.
        deaths: of worker processes on this confirmation.
        since: when the slot that it takes became free.
        timed_out: whether its worker was killed for taking too long.
    """

    group: list[Candidate] = field(default_factory=list)
    confirming: PruningSchedule | None = None
    deaths: int = 0
    since: float = 0.0
    timed_out: bool = False

    @property
    def how_it_ended(self) -> str:
        """What happened to the worker, in words."""
        return "took too long" if self.timed_out else "died"


class Trials:
    """Keeps the trials in flight, and those that wait to run again; not thread-safe.

    Args:
        timeouts: of a trial, for each of its candidates or its confirmation.
        clock: in seconds.

    Attributes:
        overheads: for each candidate, its part of the seconds from when its slot became free (another trial was
            recorded in it, or the search began) until it was recorded itself, less its forward passes.
        forwards: for each candidate, the seconds of these forward passes.
    """

    def __init__(self, timeouts: Timeouts, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeouts, self._clock = timeouts, clock
        self._running: dict[str, InFlightTrial] = {}
        self._repeats: list[InFlightTrial] = []  # which schedule killed their worker is not known yet
        self._began = clock()
        self._free: list[float] = []  # since when each slot without a trial has had none
        self.overheads: list[float] = []
        self.forwards: list[float] = []

    @property
    def running(self) -> bool:
        """Whether a trial is in flight."""
        return bool(self._running)

    @property
    def searching(self) -> bool:
        """Whether a trial in flight evaluates candidates."""
        return any(trial.confirming is None for trial in self._running.values())

    def candidates(self) -> Iterator[Candidate]:
        """Yield the candidates in flight, then those that wait to run again."""
        for trial in [*self._running.values(), *self._repeats]:
            yield from trial.group

    def start(self, trial_id: str, trial: InFlightTrial) -> None:
        """Put a trial into the slot that has been free the longest."""
        trial.since = self._free.pop(0) if self._free else self._began
        self._running[trial_id] = trial

    def finish(self, trial_id: str) -> InFlightTrial | None:
        """Take a trial out of flight; None if it is unknown. `free_slot` follows once its result is recorded."""
        return self._running.pop(trial_id, None)

    def free_slot(self) -> None:
        """Note that a slot is free from now on."""
        self._free.append(self._clock())

    def account(self, trial: InFlightTrial, forward_seconds: float) -> None:
        """Add a trial that was recorded just now to `overheads` and `forwards`."""
        count = len(trial.group)
        spent = self._clock() - trial.since - forward_seconds
        self.overheads += [spent / count] * count
        self.forwards += [forward_seconds / count] * count

    # --- time limits and deaths -------------------------------------------------------------------------

    def time_limit(self, trial_id: str) -> float | None:
        """Return the longest time of a trial in seconds; None if it is not in flight."""
        trial = self._running.get(trial_id)
        if trial is None:
            return None
        return (
            self._timeouts.candidate * len(trial.group) if trial.confirming is None else self._timeouts.confirmation
        )

    def time_out(self, trial_id: str) -> None:
        """Note that a trial's worker is about to be killed for taking too long."""
        self._running[trial_id].timed_out = True

    def next_repeat(self) -> InFlightTrial | None:
        """Take out the next trial that is to run again."""
        return self._repeats.pop(0) if self._repeats else None

    def repeat(self, candidate: Candidate) -> None:
        """Let a candidate whose worker died run again, alone."""
        self._repeats.append(InFlightTrial([replace(candidate, deaths=candidate.deaths + 1)]))

    def repeat_confirmation(self, trial: InFlightTrial) -> bool:
        """Let a confirmation whose worker died run again; return False if too many did."""
        if trial.deaths + 1 >= MOST_DEATHS:
            return False
        self._repeats.append(replace(trial, deaths=trial.deaths + 1, timed_out=False))
        return True

    def failure(self, trial: InFlightTrial, candidate: Candidate) -> Failure | None:
        """Return the failure of a candidate whose worker died; None if it may run again."""
        if candidate.deaths + 1 < MOST_DEATHS:
            return None
        if trial.timed_out:
            message = f"it took longer than {self._timeouts.candidate:g} s, also alone; see --trial-timeout"
            return Failure("TIMEOUT", message, None)
        return Failure("KILLED", "the worker process died twice on this schedule (killed, or out of memory)", None)
