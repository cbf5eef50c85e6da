"""Ends workers that take too long: a worker that hangs in compiled code cannot do so itself."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

STEP = 1.0  # seconds that one step of Tune may count; it waits for a result for a fraction of that


class Timed(Protocol):
    """Knows how long a trial may take."""

    def time_limit(self, trial_id: str) -> float | None:
        """Return the longest time of a trial; None for one that is not known."""

    def time_out(self, trial_id: str) -> None:
        """Learn that a trial's worker is about to be killed for its slowness."""


class TrialTimeout(Callback):
    """Kills a worker whose trial is overdue; Tune then sees a death, and the searcher knows why.

    A trial's time begins when a worker that is ready takes it; the opening of the model by a new one comes before.
    Only time in which the driver listened counts: while it waits for a database, results wait for it.

    Args:
        timed: asked for each trial's limit, and told.
        clock: seconds.
        kill: ends an actor's process, on whatever node.
    """

    def __init__(
        self,
        timed: Timed,
        clock: Callable[[], float] = time.monotonic,
        kill: Callable[[Any], None] = lambda actor: ray.kill(actor),
    ) -> None:
        self._timed, self._clock, self._kill = timed, clock, kill
        self._running: dict[str, tuple[Trial, float]] = {}
        self._listened, self._last = 0.0, clock()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Begin to count."""
        self._running[trial.trial_id] = (trial, self._listened)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count no more."""
        self._running.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count no more."""
        self._running.pop(trial.trial_id, None)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look for trials that are overdue; Tune comes by several times a second."""
        now = self._clock()
        self._listened += min(now - self._last, STEP)
        self._last = now
        for name, (trial, since) in list(self._running.items()):
            limit = self._timed.time_limit(name)
            if limit is not None and self._listened - since > limit:
                del self._running[name]
                self._timed.time_out(name)
                self._kill(trial.temporary_state.ray_actor)
