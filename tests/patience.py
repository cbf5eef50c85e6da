"""How long tests wait for what must come: a net under what hangs, and no measure of a machine's speed."""

import time
from collections.abc import Callable

PATIENCE = 1200.0  # seconds


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Return once `done()` holds; fail with `what` if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
