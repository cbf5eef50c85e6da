"""Races that were mended, put back to show that the simulation finds them; `python -m tests.simulation --race NAME`."""

from collections.abc import Callable, Collection, Sequence
from typing import Any
from unittest import mock

from sqlalchemy import Connection

from results import Evaluation, Study
from results.records import Claim, News
from results.store import claims
from results.store.store import Store
from search.driver import spool as spool_module
from search.driver.records import StudyRecords
from search.driver.spool import Spool


def _queues_its_own(connection: Connection, study: Study, driver: int) -> None:
    """A driver that was suspended queued its own claims, and then gave them out again (mended in 26a69f9)."""
    if expired := claims._expired_drivers(connection, study):
        claims._queue(connection, study, claims.EvaluationRow.driver_id.in_(expired))


def _takes_over_what_it_runs(self: StudyRecords, most: int, trials: int) -> list[Evaluation]:
    """A driver ran again what it was running when another one had queued it (mended in 26a69f9)."""
    taken = self.patience(
        lambda: self._store.take_over(self._study, self._driver, most, trials, self._claims)
    )
    self._claims |= {schedule_hash: claim for schedule_hash, (_, claim) in taken.items()}
    return [evaluation for evaluation, _ in taken.values()]


def _removes_what_is_held(self: Spool, store: Store, record: Any) -> bool:
    """A spool was removed with results that another driver's claim kept out (mended in 26a69f9)."""
    return False


RACES: dict[str, Callable[[], Any]] = {
    "queues-its-own": lambda: mock.patch.object(claims, "_queue_expired", _queues_its_own),
    "takes-over-what-it-runs": lambda: mock.patch.object(StudyRecords, "take_over", _takes_over_what_it_runs),
    "removes-what-is-held": lambda: mock.patch.object(Spool, "_is_held", _removes_what_is_held),
}
