"""Mended faults, put back to show that the simulation finds them: `python -m tests.simulation --race NAME`."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

from results import Evaluation
from results.records import News
from search.driver.records import StudyRecords
from search.driver.spool import Spool
from search.runtime import watchdog


def _takes_over_what_it_runs(self: StudyRecords, most: int, trials: int) -> list[Evaluation]:
    """A driver that was suspended ran what it was running once more (mended in 26a69f9)."""
    taken = self.patience(lambda: self._store.take_over(self._study, self._driver, most, trials, self._claims))
    self._claims |= {schedule_hash: claim for schedule_hash, (_, claim) in taken.items()}
    return [evaluation for evaluation, _ in taken.values()]


def _misses_what_was_lost(self: StudyRecords) -> News:
    """A driver went on when a standby had lost results, and could wait for ever (found by the simulation)."""
    after = -1 if self._last is None else self._last.number
    news = self.patience(lambda: self._store.news(self._study, self._driver, after, self._claims))
    if news.finished:
        self._last = news.finished[-1]
    return news


RACES: dict[str, Callable[[], Any]] = {
    "takes-over-what-it-runs": lambda: mock.patch.object(StudyRecords, "take_over", _takes_over_what_it_runs),
    # A spool was removed with results that another driver's claim kept out (mended in 26a69f9).
    "removes-what-is-held": lambda: mock.patch.object(Spool, "_is_held", lambda *given: False),
    # A driver that waited for its database blamed its workers for the time (mended in b914176).
    "blames-its-workers": lambda: mock.patch.object(watchdog, "LONGEST_STEP", math.inf),
    "misses-what-was-lost": lambda: mock.patch.object(StudyRecords, "news", _misses_what_was_lost),
    # A spooled score of a schedule whose result was lost ended every resume (found by the simulation).
    "confirms-what-was-lost": lambda: mock.patch.object(Spool, "_is_orphan", lambda *given: False),
}
