"""A driver's registration with a study, and its heartbeat.

Several drivers may search one study. A schedule that one of them has claimed is run by no other, unless that driver
is gone: it left, or its heartbeat stopped.
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
    """Registers this process as a driver, and sends its heartbeat from a thread; a context manager.

    Args:
        store: where the study is.
        study: that is searched.
        every: seconds between two heartbeats.

    Attributes:
        driver: as the store knows it; set on entry.
    """

    driver: Driver

    def __init__(self, store: Store, study: Study, every: float = BEAT_SECONDS) -> None:
        self._store, self._study, self._every = store, study, every
        self._over = Event()
        self._thread = Thread(target=self._keep_beating, name="prunefront lease", daemon=True)

    def __enter__(self) -> Self:
        """Register, and start the heartbeat.

        Raises:
            StoreError: the database cannot be written.
        """
        self.driver = self._store.enter(self._study, versions())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the heartbeat, and give back what was not finished."""
        self._over.set()
        self._thread.join(timeout=2 * self._every)
        # If the database is away, others notice the end of this process, or that its heartbeat stopped.
        with suppress(StoreError):
            self._store.leave(self._study, self.driver)

    def beat(self) -> None:
        """Send one heartbeat; the thread does so regularly."""
        with suppress(StoreError):  # the driver's own calls report it
            self._store.beat(self.driver)

    def _keep_beating(self) -> None:
        while not self._over.wait(self._every):
            self.beat()
