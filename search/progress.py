"""How far a search is: a bar on a terminal, a line every few seconds elsewhere; always on stderr."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from results.front import hypervolume, pareto_front
from results.records import Evaluation

LINE_SECONDS = 10.0


class SearchProgress:
    """A context manager that is told of every recorded evaluation; the driver's thread uses it."""

    def __init__(self, total: int, recorded: list[Evaluation], console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._evaluations = total, list(recorded)
        self._reused, self._began, self._first, self._printed = 0, time.monotonic(), len(recorded), 0.0
        self._bar = Progress(
            TextColumn("search"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[state]}  left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("search", total=total, completed=len(recorded), state=self.state)

    def __enter__(self) -> Self:
        """Show the bar if there is a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away and print the last state."""
        self._bar.stop()
        self.say(f"search {len(self._evaluations)}/{self._total}  {self.state}")

    @property
    def state(self) -> str:
        """Counts of done, failed and reused, the front's size and its hypervolume, in words."""
        done = [e for e in self._evaluations if e.state == "done" and e.top1 is not None]
        points = [(e.flops_ratio, e.top1 or 0.0) for e in done]
        front = [points[i] for i in pareto_front(points)]
        return (
            f"{len(done)} done, {len(self._evaluations) - len(done)} failed, {self._reused} reused, "
            f"front {len(front)}, hypervolume {hypervolume(front, (1.0, 0.0)):.4f}"
        )

    def recorded(self, evaluation: Evaluation, reused: int) -> None:
        """Count one more evaluation."""
        self._evaluations.append(evaluation)
        self._reused = reused
        now = time.monotonic()
        if self._console.is_terminal:
            self._bar.update(self._task, completed=len(self._evaluations), state=self.state)
        elif now - self._printed >= LINE_SECONDS:
            self._printed = now
            fresh = len(self._evaluations) - self._first
            left = (now - self._began) / fresh * (self._total - len(self._evaluations))
            self.say(f"search {len(self._evaluations)}/{self._total}  {self.state}, {left:.0f} s left")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
