"""The driver's access to its study in the store.

`StudyRecords` waits for a database that is away, and spools the results that the database does not take.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from results import Evaluation, Study
from results.records import Claim, Confirmation, Driver, News
from results.store.store import Store
from search.driver.patience import Patience
from search.driver.spool import Spool
from spaces.errors import DatabaseError, StoreError

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", Evaluation, Confirmation)


class Records(Protocol):
    """What the searcher asks of its study; every method may raise a StoreError."""

    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Claim schedules while the study has fewer than `trials`; return the hashes of those granted."""

    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Claim up to `most` schedules that were queued, or left by a driver that is gone."""

    def retry(self, schedule_hash: str) -> bool:
        """Begin another attempt at a claimed schedule; return False if another driver has taken it."""

    def record(self, evaluation: Evaluation, /) -> Evaluation | None:
        """Write the result of a claimed schedule; return it as written, or None if another driver has taken it."""

    def news(self) -> News:
        """Return what finished since the last call, and what other drivers are running."""

    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Return what the study has of a schedule, in whatever state."""

    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Return a schedule's confirmed score."""

    def confirm(self, confirmation: Confirmation, /) -> Confirmation | None:
        """Write a confirmed score; return it as written."""


def patient(
    verb: Callable[Concatenate["StudyRecords", P], T],
) -> Callable[Concatenate["StudyRecords", P], T]:
    """Repeat a verb while the database is away."""

    @wraps(verb)
    def repeated(self: "StudyRecords", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.patience(lambda: verb(self, *args, **kwargs))

    return repeated


def spooled(
    write: Callable[["StudyRecords", R], R | None],
) -> Callable[["StudyRecords", R], R | None]:
    """Repeat the write of a result while the database is away, and spool the result if the database stays away."""

    @wraps(write)
    def kept(self: "StudyRecords", result: R) -> R | None:
        stamped = replace(result, finished_at=result.finished_at or datetime.now(UTC))
        try:
            return self.patience(lambda: write(self, stamped))
        except DatabaseError:
            self.spool.add(stamped)
            return stamped

    return kept


class StudyRecords:
    """`Records` of one driver in a store: each result is written under the claim it was run by; not thread-safe.

    Every verb but `record` and `confirm` raises a DatabaseError once the database was given up.

    Args:
        store: where the study is.
        study: that is searched.
        driver: who searches.
        spool: takes the results that the database does not.
        patience: with the database.
        last: the evaluation that finished last, as far as is known; None if the study has none.

    Attributes:
        spool, patience: as given.
    """

    def __init__(
        self,
        store: Store,
        study: Study,
        driver: Driver,
        spool: Spool,
        patience: Patience,
        last: Evaluation | None = None,
    ) -> None:
        self._store, self._study, self._driver, self._last = store, study, driver, last
        self.spool, self.patience = spool, patience
        self._claims: dict[str, Claim] = {}
        self._written: set[str] = set()  # hashes of results since the last news

    @patient
    def claim(self, evaluations: Sequence[Evaluation], trials: int) -> set[str]:
        """Claim schedules while the study has fewer than `trials`; return the hashes of those granted."""
        claims = self._store.claim(self._study, self._driver, evaluations, trials)
        self._claims |= claims
        return set(claims)

    @patient
    def take_over(self, most: int, trials: int) -> list[Evaluation]:
        """Claim up to `most` schedules that were queued, or left by a driver that is gone."""
        taken = self._store.take_over(self._study, self._driver, most, trials, self._claims)
        # A schedule that another driver queued while this one was silent still runs here: only its claim is new.
        new = [evaluation for schedule_hash, (evaluation, _) in taken.items() if schedule_hash not in self._claims]
        self._claims |= {schedule_hash: claim for schedule_hash, (_, claim) in taken.items()}
        return new

    @patient
    def retry(self, schedule_hash: str) -> bool:
        """Begin another attempt at a claimed schedule; return False if another driver has taken it."""
        claim = self._store.retry(self._study, schedule_hash, self._claims[schedule_hash])
        if claim is None:
            del self._claims[schedule_hash]
            return False
        self._claims[schedule_hash] = claim
        return True

    @spooled
    def record(self, evaluation: Evaluation) -> Evaluation | None:
        """Write a result; return it as written, or None if another driver has taken the schedule.

        A result that went to the spool has no number.
        """
        written = self._store.record(self._study, evaluation, self._claims[evaluation.hash])
        del self._claims[evaluation.hash]
        if written is not None:
            self._written.add(written.hash)
        return written

    @spooled
    def confirm(self, confirmation: Confirmation) -> Confirmation:
        """Write a confirmed score; return it as written."""
        self._store.confirm(self._study, confirmation)
        return confirmation

    @patient
    def study(self) -> Study:
        """Return the study as it is now."""
        return self._store.study(self._study.name)

    @patient
    def news(self) -> News:
        """Return what finished since the last call, and what other drivers are running.

        Raises:
            StoreError: the database lacks results that it had. What is known here is then wrong, and so are numbers
                of evaluations: they are given again.
        """
        known = [] if self._last is None else [self._last]  # read once more, since it may be lost
        after = known[0].number - 1 if known else -1
        news = self._store.news(self._study, self._driver, after, self._claims)
        again, finished = news.finished[: len(known)], news.finished[len(known) :]
        same = [(e.hash, e.finished_at) for e in known] == [(e.hash, e.finished_at) for e in again]
        if not same or not self._written <= {evaluation.hash for evaluation in finished}:
            raise StoreError(
                f"database {self._store.where}: has lost results that it had, as happens when a standby takes over "
                "without the last commits; the same command searches on from what there is"
            )
        self._written.clear()
        if finished:
            self._last = finished[-1]
        return replace(news, finished=finished)

    @patient
    def evaluation(self, schedule_hash: str) -> Evaluation | None:
        """Return what the study has of a schedule, in whatever state."""
        return self._store.evaluation(self._study, schedule_hash)

    @patient
    def confirmation(self, schedule_hash: str) -> Confirmation | None:
        """Return a schedule's confirmed score."""
        return self._store.confirmation(self._study, schedule_hash)

    def given_up(self) -> StoreError:
        """Return the error to end with once the database was given up; it says where the results are."""
        said = f"{self.patience.error}"
        if self.spool.count:
            said += f"; {self.spool.count} results are kept in {self.spool.path}: the same command takes them in"
        if self.spool.lost:
            said += f"; {self.spool.lost} results are lost, since no file takes them either: {self.spool.reason}"
        return StoreError(said)
