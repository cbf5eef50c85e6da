"""What a model is for: a task has its data, loss, score and pictures, and nothing else knows which task it is.

A model and a data set each name their task, and fit if it is one. The score is a share from 0 to 1, `top1` in the
store whatever it is; `metric` says what.
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
    from search.data.sources import Augmentation, Split


class Tally(ABC):
    """Adds up batches of answers to a score; those of several processes are added up by their `sums`.

    Attributes:
        sums: (S,) float64 on the CPU, all that was counted.
    """

    sums: Tensor

    @abstractmethod
    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch: logits and targets of the task, on one device, the logits in float32."""

    @property
    @abstractmethod
    def images(self) -> int:
        """Images so far."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The task's score so far, in 0..1."""

    @property
    @abstractmethod
    def loss(self) -> float:
        """Mean cross-entropy so far."""

    def details(self, classes: Sequence[str]) -> dict[str, float]:
        """Return further figures by name, those of each of the named classes among them."""
        return {}


class Task(ABC):
    """A kind of question.

    Attributes:
        name: as models and data sets name it.
        metric: what the score is.
    """

    name: str
    metric: Metric

    @abstractmethod
    def read(self, split: "Split", index: int, preprocessing: "Preprocessing") -> Tensor:
        """Return an image of a split as uint8 planes (P, H, W): its colours, then what `targets` makes use of."""

    @abstractmethod
    def targets(self, planes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return colours (B, 3, H, W) and targets of planes (B, P, H, W) as `read`, and labels (B,) of the split."""

    @abstractmethod
    def move(self, planes: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same with the planes sampled on a grid (B, H, W, 2) of `F.grid_sample`, colours in 0..1."""

    @abstractmethod
    def crop(
        self,
        split: "Split",
        index: int,
        preprocessing: "Preprocessing",
        augmentation: "Augmentation",
        random: np.random.Generator,
    ) -> Tensor:
        """Return planes as `read`, of an image changed at random, where images are read when they are needed."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """Return the loss to minimise, a mean over the images of a batch."""

    def divergence(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the Kullback-Leibler divergence of softened answers, both (B, C, …): mean over images and places."""
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
        """Return the score of answers drawn at random, where all classes are equally frequent."""

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """Return the answers (B, …), small enough to be kept of all images."""

    def agreement(self, answers: Tensor, others: Tensor) -> Tensor:
        """Return the share (B,) of each image's answers that are alike, float64."""
        return (answers == others).flatten(1).double().mean(1) if answers.dim() > 1 else (answers == others).double()

    @abstractmethod
    def right(self, answers: Tensor, targets: Tensor) -> Tensor | None:
        """Return which images (B,) were answered rightly; None where an image is more than right or wrong."""

    @abstractmethod
    def describe(self, answers: Tensor, targets: Tensor, classes: Sequence[str]) -> str:
        """Return one image's answer in a few words."""

    @abstractmethod
    def subject(self, targets: Tensor, classes: Sequence[str]) -> str:
        """Return in a few words what is in one image."""

    def panels(
        self, targets: Tensor, dense: Tensor, pruned: Tensor, colours: Sequence[tuple[int, int, int]]
    ) -> "list[tuple[str, npt.NDArray[Any]]]":
        """Return pictures to show beside one image, (H, W, 3) uint8 each, with what they are."""
        return []
