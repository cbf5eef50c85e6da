"""What a training shows on stderr while it runs: a bar on a terminal, else a line an epoch."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from results.metrics import TOP1


class TrainingLog(Protocol):
    """Told by `search.training.fit`, in its own thread, how far it is; it must not raise."""

    def reference(self, name: str, top1: float, loss: float) -> None:
        """Something was measured on val before the first epoch."""

    def start(self, epochs: int, batches: int, done: int) -> None:
        """Training begins: so many epochs of so many batches, of which `done` epochs are behind it."""

    def batch(self, epoch: int, loss: float) -> None:
        """One batch of an epoch (from 1) is done."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is done: `row` is its line of the curve, without scores if val was not looked at."""


class EpochLog:
    """The log for people; a context manager, which leaves the terminal as it was."""

    def __init__(self, title: str, console: Console | None = None, score: str = TOP1.label) -> None:
        self._console = console or Console(stderr=True)
        self._score = score
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  loss {task.fields[loss]:.3f}  left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._title = title
        self._task: TaskID | None = None
        self._epochs = 0

    def __enter__(self) -> Self:
        """Show the bar if there is a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._console.is_terminal:
            self._bar.stop()

    def reference(self, name: str, top1: float, loss: float) -> None:
        """Print what there was before the first epoch."""
        self._line(f"{name}  val {self._score} {top1:.4f}  val loss {loss:.4f}")

    def start(self, epochs: int, batches: int, done: int) -> None:
        """Show how much there is to do."""
        self._epochs = epochs
        total = epochs * batches
        self._task = self._bar.add_task(self._title, total=total, completed=done * batches, loss=0.0)
        if done:
            self._line(f"{self._title}: {done} of {epochs} epochs are done already")

    def batch(self, epoch: int, loss: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, loss=loss, description=f"{self._title} {epoch}/{self._epochs}")

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print the epoch's line."""
        val = "" if row["top1"] is None else f"val {self._score} {row['top1']:.4f}  val loss {row['loss']:.4f}  "
        epoch = f"epoch {row['epoch']}/{self._epochs}"
        self._line(f"{epoch}  loss {row['train_loss']:.4f}  {val}{row['seconds']:.0f} s")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
