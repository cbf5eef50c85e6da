"""A driver's hold on a study: it says that it lives, and every schedule that it runs is its own.

Other drivers may search the same study meanwhile. What one of them has claimed no other runs, unless it is gone.
"""

from contextlib import suppress
from threading import Event, Thread
from types import TracebackType
from typing import Self

from results import Study
from results.records import Driver
from results.store.claims import BEAT_SECONDS
from results.store.store import Store
from search.runtime.versions import versions
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
            StoreError: the database cannot be written.
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
        # Where the database is away nobody needs to be told: the process ends, or the lease runs out.
        with suppress(StoreError):
            self._store.leave(self._study, self.driver)

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            with suppress(StoreError):  # the driver's own reads and writes report what is wrong
                self._store.beat(self.driver)
