"""The progress of a search on stderr: a bar on a terminal, otherwise a line every few seconds."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

SECONDS_PER_LINE = 10.0


@dataclass(frozen=True)
class Snapshot:
    """How far a search is.

    Attributes:
        done: evaluations of the study over all images, in earlier runs too.
        stopped: evaluations that were stopped early.
        failed: evaluations that failed.
        reused: proposals of this run whose result was known already.
        trials: evaluations that the study is to have in all, in any state.
        front: points on the Pareto front.
        hypervolume: of the front, in 0..1, with FLOPs as a share of the dense model's.
        unconfirmed: points of the front that are still to be confirmed; None before confirming begins.
    """

    done: int
    stopped: int
    failed: int
    reused: int
    trials: int
    front: int
    hypervolume: float
    unconfirmed: int | None = None

    @property
    def recorded(self) -> int:
        """Evaluations that the study has, in any state."""
        return self.done + self.stopped + self.failed

    @property
    def text(self) -> str:
        """The figures as one line."""
        counts = f"{self.done} done, {self.stopped} stopped early, {self.failed} failed, {self.reused} reused"
        left = "" if self.unconfirmed is None else f", {self.unconfirmed} to confirm"
        return f"{counts}, front {self.front}, hypervolume {self.hypervolume:.4f}{left}"


class SearchProgress:
    """Shows snapshots; a context manager that restores the terminal."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._title = title
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._began: tuple[float, int] | None = None  # time of the first update, and how many were recorded then
        self._last_line = 0.0

    def __enter__(self) -> Self:
        """Show the bar if there is a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self._console.is_terminal:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        """Show how far the search is."""
        recorded = snapshot.recorded
        left = self._left(recorded, snapshot.trials)
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task(self._title, total=snapshot.trials, text="", left="")
            self._bar.update(self._task, completed=recorded, text=snapshot.text, left=left)
            return
        now = time.monotonic()
        last = recorded >= snapshot.trials and not snapshot.unconfirmed
        if now - self._last_line >= SECONDS_PER_LINE or last:
            self._last_line = now
            self.note(f"{self._title}: {recorded}/{snapshot.trials}: {snapshot.text}{left and ', ' + left}")

    def _left(self, recorded: int, trials: int) -> str:
        now = time.monotonic()
        if self._began is None:
            self._began = (now, recorded)
        since, before = self._began
        if recorded <= before or recorded >= trials:
            return ""
        seconds = round((now - since) / (recorded - before) * (trials - recorded))
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{clock} left"
