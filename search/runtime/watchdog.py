"""Kills workers that take too long; one that hangs in compiled code cannot end itself."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

LONGEST_STEP = 1.0  # seconds that one step of Tune counts at most; an undisturbed one takes a fraction of that


class TimeLimits(Protocol):
    """Knows how long each trial may take."""

    def time_limit(self, trial_id: str) -> float | None:
        """Return the longest time of a trial in seconds; None for an unknown trial."""

    def time_out(self, trial_id: str) -> None:
        """Note that a trial's worker is about to be killed for taking too long."""


class TrialTimeout(Callback):
    """Kills a worker whose trial is overdue. Tune then reports a death, whose cause the searcher knows.

    A trial's time begins when a worker that has opened its model takes it. Only time in which the driver could have
    taken the result counts: while it waits for a database, results wait for it.

    Args:
        limits: of the trials; told of each timeout.
        clock: in seconds.
        kill: ends an actor's process, on whatever node.
    """

    def __init__(
        self,
        limits: TimeLimits,
        clock: Callable[[], float] = time.monotonic,
        kill: Callable[[Any], None] = lambda actor: ray.kill(actor),
    ) -> None:
        self._limits, self._clock, self._kill = limits, clock, kill
        self._running: dict[str, tuple[Trial, float]] = {}
        self._available, self._last = 0.0, clock()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Start a trial's time."""
        self._running[trial.trial_id] = (trial, self._available)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Stop a trial's time."""
        self._running.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Stop a trial's time."""
        self._running.pop(trial.trial_id, None)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look for overdue trials; Tune calls this several times a second."""
        now = self._clock()
        self._available += min(now - self._last, LONGEST_STEP)
        self._last = now
        for trial_id, (trial, since) in list(self._running.items()):
            limit = self._limits.time_limit(trial_id)
            if limit is not None and self._available - since > limit:
                del self._running[trial_id]
                self._limits.time_out(trial_id)
                self._kill(trial.temporary_state.ray_actor)
