"""A driver's hold on a study: it says that it lives, and every schedule that it runs is its own.

Other drivers may search the same study meanwhile. What one of them has claimed no other runs, unless it is gone.
"""

from collections.abc import Sequence
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import Self

from results import Evaluation, Study
from results.claims import BEAT_SECONDS
from results.records import Claim, Confirmation, Driver, News
from results.store import Store
from search.versions import versions
from spaces.errors import StoreError


class Lease:
    """Registers this process as a driver for the time of a `with`, and beats meanwhile from a thread of its own.

    Args:
        store: where the study is.
        study: to be searched.
        every: seconds between two signs of life.

    Attributes:
        driver: as the store knows it; set on entering.
    """

    driver: Driver

    def __init__(self, store: Store, study: Study, every: float = BEAT_SECONDS) -> None:
        self._store, self._study, self._every = store, study, every
        self._over = Event()
        self._thread = Thread(target=self._beat, name="prunefront lease", daemon=True)

    def __enter__(self) -> Self:
        """Come.

        Raises:
            StoreError: the data base cannot be written.
        """
        self.driver = self._store.enter(self._study, versions())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave, and give back what was not finished."""
        self._over.set()
        self._thread.join(timeout=2 * self._every)
        # Where the data base is away nobody needs to be told: the process ends, or the lease runs out.
        with suppress(StoreError):
            self._store.leave(self._study, self.driver)

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            with suppress(StoreError):  # the driver's own reads and writes report what is wrong
                self._store.beat(self.driver)


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
