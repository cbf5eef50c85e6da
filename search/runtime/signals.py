"""SIGINT and SIGTERM: the first one asks for an orderly end, the second one ends the process at once."""

import os
import signal
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context manager that handles both signals; for the main thread.

    Args:
        at_first: called inside the signal handler, on the first signal.
        at_second: called on the second one, right before the process ends.

    Attributes:
        signal: the first signal; None if there was none.
    """

    def __init__(self, at_first: Callable[[], None], at_second: Callable[[], None] = lambda: None) -> None:
        self._at_first, self._at_second = at_first, at_second
        self._before: dict[int, signal._HANDLER] = {}
        self.signal: int | None = None

    def __enter__(self) -> Self:
        """Install the handlers."""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal stopped; 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            end_descendants()
            self._at_second()
            os._exit(128 + number)
        self.signal = number
        self._at_first()


def end_descendants() -> None:
    """Kill all processes that descend from this one; needs /proc.

    Most of Ray's processes die with their parent anyway, but its agents stay for a minute.
    """
    children = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # the process has just ended
            # PID (NAME) STATE PARENT …, and a name may hold spaces and brackets
            children[int(entry.read_text().rpartition(")")[2].split()[1])].append(int(entry.parent.name))
    waiting = [os.getpid()]
    while waiting:
        for child in children[waiting.pop()]:
            waiting.append(child)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
