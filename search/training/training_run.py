"""The settings of a training that do not change the resulting weights: where it writes, where and how it runs."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from search.training.data_parallel import SINGLE_PROCESS, DataParallelRank
from search.training.observer import SilentObserver, TrainingObserver
from search.training.recipe import Recipe
from spaces.errors import UsageError


@dataclass(frozen=True)
class Pace:
    """How a training proceeds. Apart from rounding and batch norms, none of it changes the resulting weights.

    Attributes:
        accumulate: number of parts that the images of a step are split into, to save memory.
        eval_every: epochs between two evaluations on val; the last epoch is always evaluated.
        until: stop after this epoch of the recipe, to be resumed later; None trains all epochs.

    Raises:
        UsageError: a value below 1.
    """

    accumulate: int = 1
    eval_every: int = 1
    until: int | None = None

    def __post_init__(self) -> None:
        for name in ("accumulate", "eval_every", "until"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")

    def last_epoch(self, recipe: Recipe) -> int:
        """Return the epoch, from 1, after which training stops.

        >>> Pace(until=3).last_epoch(Recipe(epochs=10))
        3
        """
        return recipe.epochs if self.until is None else min(self.until, recipe.epochs)

    def evaluates(self, epoch: int, recipe: Recipe) -> bool:
        """Return whether val is evaluated after epoch `epoch`, from 1."""
        return epoch % self.eval_every == 0 or epoch == self.last_epoch(recipe)


@dataclass(frozen=True)
class TrainingRun:
    """Where and how a training runs.

    Attributes:
        out: folder for the checkpoint of each epoch and the results; made if missing.
        resume: continue from the checkpoint in `out` if there is one; otherwise start from scratch.
        device: None chooses cuda if available.
        pace: how it proceeds.
        observer: receives the progress.
        rank: which of several processes this is. All of them train with equal settings, except `observer`.
    """

    out: Path
    resume: bool = True
    device: str | torch.device | None = None
    pace: Pace = field(default_factory=Pace)
    observer: TrainingObserver = field(default_factory=SilentObserver)
    rank: DataParallelRank = SINGLE_PROCESS

    @property
    def torch_device(self) -> torch.device:
        """The device to train on."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
