"""The interface of tasks: targets, loss, score and pictures. No other code depends on which task it is.

A model and a data set each name their task, and fit together if the names are equal. The score is a share from 0 to
1. The store calls it `top1` in every task; `metric` says what it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from results.metrics import Metric

if TYPE_CHECKING:
    import numpy.typing as npt

    from search.data.preprocessing import Preprocessing
    from search.data.source import Augmentation, Split


class Tally(ABC):
    """Accumulates the score over batches. Tallies of several processes are combined by adding their `sums`.

    Attributes:
        sums: (S,) float64 on the CPU; everything that is counted.
    """

    sums: Tensor

    @abstractmethod
    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: float32 logits and the task's targets, on one device."""

    @property
    @abstractmethod
    def images(self) -> int:
        """Number of images so far."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The task's score so far, in 0..1."""

    @property
    @abstractmethod
    def loss(self) -> float:
        """Mean cross-entropy so far."""

    def details(self, classes: Sequence[str]) -> dict[str, float]:
        """Return further figures by name, including those of each class; `classes` are the names of the classes."""
        return {}


class Task(ABC):
    """What a model predicts, and how predictions are scored.

    Attributes:
        name: the name that models and data sets refer to.
        metric: what the score is.
    """

    name: str
    metric: Metric

    @abstractmethod
    def read(self, split: "Split", index: int, preprocessing: "Preprocessing") -> Tensor:
        """Return an image of a split as planes (P, H, W) uint8: three of colour, then those that `targets` needs."""

    @abstractmethod
    def targets(self, planes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels (B, 3, H, W) uint8 and targets, given planes (B, P, H, W) from `read` and labels (B,)."""

    @abstractmethod
    def warp(self, planes: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """As `targets`, with the planes sampled on a grid (B, H, W, 2) as `F.grid_sample` takes; pixels in 0..1."""

    @abstractmethod
    def crop(
        self,
        split: "Split",
        index: int,
        preprocessing: "Preprocessing",
        augmentation: "Augmentation",
        random: np.random.Generator,
    ) -> Tensor:
        """As `read`, but of a randomly transformed image; for splits that are not kept in memory."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss to minimise, a mean over the images of the batch."""

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the KL divergence of softened logits, (B, C, …) each, averaged over images and pixels."""
        distance = F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return distance / max(1, student[0, 0].numel())

    @abstractmethod
    def tally(self, classes: int) -> Tally:
        """Return an empty tally."""

    @abstractmethod
    def chance(self, classes: int) -> float:
        """Return the expected score of random answers if all classes are equally frequent."""

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """Return the predicted classes (B, …), in a type small enough to keep those of all images."""

    def agreement(self, answers: Tensor, others: Tensor) -> Tensor:
        """Return for each image the share of its answers that are equal, (B,) float64."""
        return (answers == others).flatten(1).double().mean(1) if answers.dim() > 1 else (answers == others).double()

    @abstractmethod
    def right(self, answers: Tensor, targets: Tensor) -> Tensor | None:
        """Return which images are correct, (B,) bool; None if images are not simply right or wrong."""

    @abstractmethod
    def describe(self, answers: Tensor, targets: Tensor, classes: Sequence[str]) -> str:
        """Describe the answer to one image in a few words."""

    @abstractmethod
    def subject(self, targets: Tensor, classes: Sequence[str]) -> str:
        """Describe the content of one image in a few words."""

    def panels(
        self, targets: Tensor, dense: Tensor, pruned: Tensor, colours: Sequence[tuple[int, int, int]]
    ) -> "list[tuple[str, npt.NDArray[Any]]]":
        """Return (caption, picture (H, W, 3) uint8) pairs to show beside an image; none by default."""
        return []
