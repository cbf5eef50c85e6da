"""Classification: one class per image, scored by top-1."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from results.metrics import TOP1
from search.data.preprocessing import Preprocessing
from search.data.source import Augmentation, Split
from search.data.task import Tally, Task


class _Counts(Tally):
    """Counts correct answers."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)  # images, correct ones, cross-entropy

    def add(self, logits: Tensor, targets: Tensor) -> None:
        right = int((logits.argmax(1) == targets).sum())
        loss = float(F.cross_entropy(logits, targets, reduction="sum"))
        self.sums += torch.tensor([len(targets), right, loss], dtype=torch.float64)

    @property
    def images(self) -> int:
        return int(self.sums[0])

    @property
    def score(self) -> float:
        return float(self.sums[1] / self.sums[0])

    @property
    def loss(self) -> float:
        return float(self.sums[2] / self.sums[0])


class Classification(Task):
    """One class per image, scored by top-1."""

    name, metric = "classification", TOP1

    def read(self, split: "Split", index: int, preprocessing: "Preprocessing") -> Tensor:
        """See `Task`: only colours."""
        return preprocessing.geometry(split.image(index))

    def targets(self, planes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`: the labels (B,)."""
        return planes, labels

    def warp(self, planes: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        pixels = planes.float().div_(255)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False), labels

    def crop(
        self,
        split: "Split",
        index: int,
        preprocessing: "Preprocessing",
        augmentation: "Augmentation",
        random: np.random.Generator,
    ) -> Tensor:
        """See `Task`: a random crop."""
        from search.data.transforms import random_crop

        return random_crop(split.image(index), preprocessing, augmentation, random)

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """See `Task`: cross-entropy; the targets are labels (B,) or shares of classes (B, C)."""
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def tally(self, classes: int) -> Tally:
        """See `Task`."""
        return _Counts()

    def chance(self, classes: int) -> float:
        """See `Task`."""
        return 1 / classes

    def answers(self, logits: Tensor) -> Tensor:
        """See `Task`: (B,) int64."""
        return logits.argmax(1)

    def right(self, answers: Tensor, targets: Tensor) -> Tensor | None:
        """See `Task`."""
        return answers == targets

    def describe(self, answers: Tensor, targets: Tensor, classes: Sequence[str]) -> str:
        """See `Task`: the class's name."""
        return classes[int(answers)]

    def subject(self, targets: Tensor, classes: Sequence[str]) -> str:
        """See `Task`: the class's name."""
        return classes[int(targets)]


CLASSIFICATION = Classification()
