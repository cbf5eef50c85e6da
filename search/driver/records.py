"""The driver's way into the store, and its patience with a database that is away.

A write is repeated while what went wrong may be over later; it may have been done whose word was lost on the way, so
each can be said twice. When patience is at its end the results that arrive are
spooled to a file, for a resume to take in.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from results import Evaluation, Study
from results.records import Claim, Confirmation, Driver, News
from results.store.store import Store
from search.driver.spool import Spool
from spaces.errors import DatabaseError, StoreError

PATIENCE = 600.0  # seconds to wait for a database, unless told otherwise
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0  # seconds between two attempts: twice as long each time
SLICE = 0.5  # seconds of waiting after which it is asked whether there is a hurry

T = TypeVar("T")


class Records(Protocol):
    """The study's place in the store, for one driver; every method may raise a StoreError."""

    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Claim schedules to run them, while the study has less than `trials`; return the hashes of those granted."""

    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Claim up to `most` schedules that were queued or left by a driver that is gone."""

    def retry(self, schedule_hash: str) -> bool:
        """Begin another attempt of a claimed schedule; False if it is another driver's now."""

    def record(self, evaluation: Evaluation) -> bool:
        """Write what came of a claimed schedule; False if it is another driver's now."""

    def news(self) -> News:
        """Return what finished since the last time, and what others are at."""

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Return what the study has of a schedule, in whatever state."""

    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Return a schedule's confirmed score."""

    def confirm(self, confirmation: Confirmation) -> None:
        """Write a confirmed score."""


class ClaimedRecords:
    """The searcher's way into the store: each record under the claim that it was run by; for one thread.

    Every method may raise a StoreError.

    Args:
        store: where the study is.
        study: that is searched.
        driver: who searches.
        after: number of the last evaluation that is known; -1 for none.
    """

    def __init__(self, store: Store, study: Study, driver: Driver, after: int = -1) -> None:
        self._store, self._study, self._driver, self._after = store, study, driver, after
        self._held: dict[str, Claim] = {}

    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Claim schedules to run them, while the study has less than `trials`; return the hashes of those granted."""
        claims = self._store.claim(self._study, self._driver, evaluations, trials)
        self._held |= claims
        return set(claims)

    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Claim up to `most` schedules that were queued or left by a driver that is gone."""
        taken = self._store.take_over(self._study, self._driver, most, trials, self._held)
        # What another driver queued while this one was silent is still under way here: only its claim is new.
        new = [evaluation for schedule_hash, (evaluation, _) in taken.items() if schedule_hash not in self._held]
        self._held |= {schedule_hash: claim for schedule_hash, (_, claim) in taken.items()}
        return new

    def retry(self, schedule_hash: str) -> bool:
        """Begin another attempt of a schedule whose worker was lost; False if it is another driver's now."""
        claim = self._store.retry(self._study, schedule_hash, self._held[schedule_hash])
        if claim is None:
            del self._held[schedule_hash]
            return False
        self._held[schedule_hash] = claim
        return True

    def record(self, evaluation: Evaluation) -> bool:
        """Write an evaluation; False if its schedule was taken by another driver."""
        written = self._store.record(self._study, evaluation, self._held[evaluation.hash])
        del self._held[evaluation.hash]
        return written

    def study(self) -> Study:
        """Return the study as it is now."""
        return self._store.study(self._study.name)

    def news(self) -> News:
        """Return what finished since the last time, and what others are at."""
        news = self._store.news(self._study, self._driver, self._after, self._held)
        if news.finished:
            self._after = news.finished[-1].number
        return news

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Return what the study has of a schedule, in whatever state."""
        return self._store.evaluation(self._study, schedule_hash)

    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Return a schedule's confirmed score."""
        return self._store.confirmation(self._study, schedule_hash)

    def confirm(self, confirmation: Confirmation) -> None:
        """Write a confirmed score."""
        self._store.confirm(self._study, confirmation)


class PatientRecords:
    """Records over a database that may be away for a while; for one thread.

    Args:
        records: asked and told.
        spool: takes what the database does not.
        patience: seconds to wait, from the first failure of a call.
        lost: called once, when patience is at its end or waiting makes no sense.
        hurry: asked while waiting; true ends the wait.
        note: called with a line for the user.
        recorded: called with the hash of each evaluation that was written.

    Attributes:
        error: why the database counts as gone; None while it does not.
    """

    def __init__(
        self,
        records: ClaimedRecords,
        spool: Spool,
        *,
        patience: float = PATIENCE,
        lost: Callable[[], None] = lambda: None,
        hurry: Callable[[], bool] = lambda: False,
        note: Callable[[str], None] = lambda text: None,
        recorded: Callable[[str], None] = lambda schedule_hash: None,
    ) -> None:
        self._recorded = recorded
        self._records, self._spool, self._patience = records, spool, patience
        self._lost, self._hurry, self._note = lost, hurry, note
        self._random = random.Random()  # not the search's seed: drivers that wait for one server shall part
        self.error: DatabaseError | None = None

    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Claim schedules to run them; return the hashes of those granted; raises as `evaluation` does."""
        return self.patiently(lambda: self._records.claim(evaluations, trials))

    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Claim schedules that were queued or left; raises as `evaluation` does."""
        return self.patiently(lambda: self._records.take_over(most, trials))

    def retry(self, schedule_hash: str) -> bool:
        """Begin another attempt of a schedule; raises as `evaluation` does."""
        return self.patiently(lambda: self._records.retry(schedule_hash))

    def news(self) -> News:
        """Return what finished since the last time, and what others are at; raises as `evaluation` does."""
        return self.patiently(self._records.news)

    def record(self, evaluation: Evaluation) -> bool:
        """Write an evaluation, or spool it; False if its schedule was taken by another driver."""
        stamped = replace(evaluation, finished_at=evaluation.finished_at or datetime.now(UTC))
        try:
            written = self.patiently(lambda: self._records.record(stamped))
        except DatabaseError:
            self._spool.add(stamped)
            return True
        if written:
            self._recorded(stamped.hash)
        return written

    def confirm(self, confirmation: Confirmation) -> None:
        """Write a confirmed score, or spool it."""
        stamped = replace(confirmation, finished_at=confirmation.finished_at or datetime.now(UTC))
        try:
            self.patiently(lambda: self._records.confirm(stamped))
        except DatabaseError:
            self._spool.add(stamped)

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Return what is recorded of a schedule.

        Raises:
            DatabaseError: the database is gone.
        """
        return self.patiently(lambda: self._records.evaluation(schedule_hash))

    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Return a schedule's confirmed score; raises as `evaluation` does."""
        return self.patiently(lambda: self._records.confirmation(schedule_hash))

    def study(self) -> Study:
        """Return the study as it is now; raises as `evaluation` does."""
        return self.patiently(self._records.study)

    def patiently(self, call: Callable[[], T]) -> T:
        """Return what a call comes to, repeated while its failures are transient.

        Raises:
            DatabaseError: patience is at its end, or what is wrong will stay so. Nothing is tried after that.
        """
        if self.error is not None:
            raise self.error
        began: float | None = None
        wait = FIRST_WAIT
        while True:
            try:
                found = call()
            except DatabaseError as error:
                now = time.monotonic()
                if began is None:
                    began = now
                    if error.transient and self._patience > 0:
                        self._note(f"warning: {error}; waiting for up to {self._patience:g} s")
                left = began + self._patience - now
                if not error.transient or left <= 0 or not self._wait(min(wait * self._random.uniform(0.5, 1), left)):
                    self.error = error
                    self._lost()
                    raise
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                if began is not None:
                    self._note(f"the database answers again after {time.monotonic() - began:.1f} s; nothing is lost")
                return found

    def farewell(self) -> StoreError:
        """Return what to end with when the database is gone: what became of the results."""
        spool = self._spool
        said = f"{self.error}"
        if spool.count:
            said += f"; {spool.count} results are kept in {spool.path}: the same command takes them in"
        if spool.lost:
            said += f"; {spool.lost} results are lost, for no file takes them either: {spool.reason}"
        return StoreError(said)

    def _wait(self, seconds: float) -> bool:
        """Wait; False if there is a hurry."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._hurry():
                return False
            time.sleep(min(left, SLICE))
        return not self._hurry()
