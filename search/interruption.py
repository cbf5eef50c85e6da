"""SIGINT and SIGTERM: once, and what is under way is recorded; twice, and the process ends at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context manager that takes over both signals, in the main thread.

    Args:
        at_first: called, inside the signal handler, on the first signal.
        at_second: called on the second, right before the process ends.

    Attributes:
        signal: the first signal that came; None if none did.
    """

    def __init__(self, at_first: Callable[[], None], at_second: Callable[[], None] = lambda: None) -> None:
        self._at_first, self._at_second = at_first, at_second
        self._before: dict[int, signal._HANDLER] = {}
        self.signal: int | None = None

    def __enter__(self) -> Self:
        """Take over the signals."""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take over the signals again, from a library that took them for itself."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @property
    def exit_code(self) -> int:
        """What a process ends with that was stopped so; 0 if it was not."""
        return 0 if self.signal is None else 128 + self.signal

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self._at_second()
            os._exit(128 + number)  # Ray's processes follow: the kernel ends them with their parent
        self.signal = number
        self._at_first()
