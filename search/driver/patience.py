"""Patience with a database that is away: calls are repeated while their failure may be transient."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from spaces.errors import DatabaseError

DEFAULT_SECONDS = 600.0  # to wait for a database
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0  # seconds between two attempts, which double each time
SLICE = 0.5  # seconds of waiting between two looks at `hurry`

T = TypeVar("T")


@dataclass
class Patience:
    """Repeats calls to a database; not thread-safe.

    A failed write may have been committed all the same, so only calls may be repeated that do no harm when they are
    done twice.

    Attributes:
        seconds: to wait, from the first failure of a call.
        lost: called once, when the database is given up.
        hurry: asked while waiting; true ends the wait.
        note: called with a line for the user.
        sleep, clock: in seconds.
        chance: of the waits; not seeded, since drivers that wait for the same server should try at different times.
        error: why the database was given up; None while it was not.
    """

    seconds: float = DEFAULT_SECONDS
    lost: Callable[[], None] = lambda: None
    hurry: Callable[[], bool] = lambda: False
    note: Callable[[str], None] = lambda text: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    chance: random.Random = field(default_factory=random.Random, repr=False)
    error: DatabaseError | None = field(default=None, init=False)

    def __call__(self, call: Callable[[], T]) -> T:
        """Return what a call returns, repeated while its failures are transient.

        Raises:
            DatabaseError: the waiting was in vain, or the failure is permanent. No later call is tried then.
        """
        if self.error is not None:
            raise self.error
        try:
            return call()
        except DatabaseError as error:
            return self._repeat(call, error)

    def _repeat(self, call: Callable[[], T], error: DatabaseError) -> T:
        began, wait = self.clock(), FIRST_WAIT
        if error.transient and self.seconds > 0:
            self.note(f"warning: {error}; waiting for up to {self.seconds:g} s")
        while True:
            left = began + self.seconds - self.clock()
            if not error.transient or left <= 0 or not self._wait(min(wait * self.chance.uniform(0.5, 1), left)):
                self.error = error
                self.lost()
                raise error
            wait = min(2 * wait, LONGEST_WAIT)
            try:
                found = call()
            except DatabaseError as latest:
                error = latest
            else:
                self.note(f"the database answers again after {self.clock() - began:.1f} s; nothing is lost")
                return found

    def _wait(self, seconds: float) -> bool:
        """Wait; return False if there is a hurry."""
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            if self.hurry():
                return False
            self.sleep(min(left, SLICE))
        return not self.hurry()
