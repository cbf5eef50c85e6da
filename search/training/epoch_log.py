"""The progress of a training on stderr: a progress bar on a terminal, and a line for each epoch."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from results.metrics import TOP1


class EpochLog:
    """A `TrainingObserver` for people. A context manager, which restores the terminal.

    Args:
        title: what the bar is labelled with.
        console: where to print; stderr by default.
        score: label of the score, such as top-1.
        split: name of the split that scores are of.
    """

    def __init__(
        self, title: str, console: Console | None = None, score: str = TOP1.label, split: str = "val"
    ) -> None:
        self._console = console or Console(stderr=True)
        self._score, self._split = f"{split} {score}", split
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
        """Remove the bar."""
        if self._console.is_terminal:
            self._bar.stop()

    def on_reference(self, name: str, top1: float, loss: float) -> None:
        """Print the scores of a reference model."""
        self._print(f"{name}  {self._score} {top1:.4f}  {self._split} loss {loss:.4f}")

    def on_start(self, epochs: int, batches: int, done: int) -> None:
        """Set the length of the bar."""
        self._epochs = epochs
        total = epochs * batches
        self._task = self._bar.add_task(self._title, total=total, completed=done * batches, loss=0.0)
        if done:
            self._print(f"{self._title}: {done} of {epochs} epochs are done already")

    def on_batch(self, epoch: int, loss: float) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.update(self._task, advance=1, loss=loss, description=f"{self._title} {epoch}/{self._epochs}")

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Print a line for the epoch."""
        val, loss = "", f"{self._split} loss"
        if row["top1"] is not None:
            val = f"{self._score} {row['top1']:.4f}  {loss} {row['loss']:.4f}  "
        epoch = f"epoch {row['epoch']}/{self._epochs}"
        self._print(f"{epoch}  loss {row['train_loss']:.4f}  {val}{row['seconds']:.0f} s")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
