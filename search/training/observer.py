"""The interface through which a training reports its progress."""

from collections.abc import Mapping
from typing import Any, Protocol


class TrainingObserver(Protocol):
    """Receives the progress of a training, in the thread that trains. Its methods must not raise."""

    def on_reference(self, name: str, top1: float, loss: float) -> None:
        """A reference model was scored on val before the first epoch."""

    def on_start(self, epochs: int, batches: int, done: int) -> None:
        """Training begins: `epochs` epochs of `batches` batches in all, of which `done` epochs are finished."""

    def on_batch(self, epoch: int, loss: float) -> None:
        """A batch of epoch `epoch`, from 1, is finished."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch is finished. `row` is its entry in the curve; its scores are None if val was not evaluated."""


class SilentObserver:
    """Ignores all progress."""

    def on_reference(self, name: str, top1: float, loss: float) -> None:
        """Ignore it."""

    def on_start(self, epochs: int, batches: int, done: int) -> None:
        """Ignore it."""

    def on_batch(self, epoch: int, loss: float) -> None:
        """Ignore it."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Ignore it."""
