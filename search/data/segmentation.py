"""Semantic segmentation: a class for each pixel; some pixels may have none.

The score is mean IoU: TP / (TP + FP + FN) of each class over all pixels of all images, averaged over the classes that
occur in a mask or an answer. F1 is 2 TP / (2 TP + FP + FN), and mF1 its mean over the same classes. OA (overall
accuracy) is the share of correct pixels. Pixels without a class count only for the agreement of two models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from results.metrics import MIOU
from search.data.task import Tally, Task
from search.data.tiles import NO_CLASS

if TYPE_CHECKING:
    import numpy.typing as npt

    from search.data.preprocessing import Preprocessing
    from search.data.source import Augmentation, Split

DICE_SMOOTHING = 1.0  # added to numerator and denominator, in pixels


class Confusion(Tally):
    """A confusion matrix of pixels.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.sums = torch.zeros(2 + classes**2, dtype=torch.float64)  # images, cross-entropy, then the matrix

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """See `Tally`: logits (B, C, H, W), targets (B, H, W)."""
        known = targets != NO_CLASS
        pairs = targets[known] * self._classes + logits.argmax(1)[known]
        matrix = torch.bincount(pairs, minlength=self._classes**2).cpu().double()
        loss = float(cross_entropy(logits, targets, 0.0).sum())
        self.sums += torch.cat([torch.tensor([len(targets), loss], dtype=torch.float64), matrix])

    @property
    def images(self) -> int:
        """See `Tally`."""
        return int(self.sums[0])

    @property
    def loss(self) -> float:
        """See `Tally`: the mean over images of the mean over their pixels."""
        return float(self.sums[1] / self.sums[0])

    @property
    def matrix(self) -> Tensor:
        """(C, C) number of pixels, by class and then by answer."""
        return self.sums[2:].view(self._classes, self._classes)

    @property
    def score(self) -> float:
        """Mean IoU; 0 if no pixel has a class."""
        ious = self._ious()
        return float(ious[~ious.isnan()].mean()) if bool((~ious.isnan()).any()) else 0.0

    def _ious(self) -> Tensor:
        right = self.matrix.diagonal()
        return right / (self.matrix.sum(0) + self.matrix.sum(1) - right)  # NaN for classes that do not occur

    def details(self, classes: Sequence[str]) -> dict[str, float]:
        """See `Tally`: mf1, oa, and the IoU of each class that occurs."""
        right, total = self.matrix.diagonal(), self.matrix.sum()
        if not total:
            return {}
        f1 = 2 * right / (self.matrix.sum(0) + self.matrix.sum(1))
        found = {"mf1": float(f1[~f1.isnan()].mean()), "oa": float(right.sum() / total)}
        ious = zip(classes, self._ious().tolist(), strict=True)
        return found | {f"iou {name}": iou for name, iou in ious if iou == iou}


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return the mean over the labelled pixels of each image, (B,); 0 for an image without any."""
    losses = F.cross_entropy(
        logits, targets, reduction="none", ignore_index=NO_CLASS, label_smoothing=label_smoothing
    )
    known = (targets != NO_CLASS).flatten(1).sum(1)
    return losses.flatten(1).sum(1) / known.clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - mean soft Dice over the classes in the mask of each image, (B,); 0 for a mask without classes.

    Dice of a class is (2 Σ p t + 1) / (Σ p + Σ t + 1) over the labelled pixels, where p is the softmax output and t
    the mask (V-Net, arXiv:1606.04797, but without the squares in the denominator).
    """
    known = targets != NO_CLASS
    truth = F.one_hot(targets.where(known, targets.new_zeros(())), logits.shape[1]).movedim(-1, 1)
    truth = (truth * known[:, None]).flatten(2).to(logits.dtype)
    shares = (logits.softmax(1) * known[:, None]).flatten(2)
    there = truth.sum(2)
    dice = (2 * (shares * truth).sum(2) + DICE_SMOOTHING) / (shares.sum(2) + there + DICE_SMOOTHING)
    present = there > 0
    return ((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)


class Segmentation(Task):
    """A class for each pixel, scored by mean IoU."""

    name, metric = "segmentation", MIOU

    def read(self, split: "Split", index: int, preprocessing: "Preprocessing") -> Tensor:
        """See `Task`: colours and the mask, both resized to the model's input; the mask by nearest neighbour."""
        size = preprocessing.img_size[::-1]
        image = np.array(split.image(index).resize(size, preprocessing.resampling))
        mask = np.array(split.mask(index).resize(size, Image.Resampling.NEAREST))
        return torch.from_numpy(np.concatenate([image, mask[..., None]], 2)).permute(2, 0, 1)

    def targets(self, planes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`: the masks (B, H, W) int64."""
        return planes[:, :3], planes[:, 3].long()

    def warp(self, planes: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`; pixels from beyond the edges are black and have no class."""
        pixels, masks = planes[:, :3].float().div_(255), planes[:, 3:].float() - NO_CLASS
        pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        masks = F.grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return pixels, (masks[:, 0] + NO_CLASS).long()

    def crop(
        self,
        split: "Split",
        index: int,
        preprocessing: "Preprocessing",
        augmentation: "Augmentation",
        random: np.random.Generator,
    ) -> Tensor:
        """See `Task`: the tile, transformed like those in memory."""
        from search.data.transforms import sampling_grid

        planes = self.read(split, index, preprocessing)[None]
        drawn = torch.from_numpy(random.random((1, 5))).float()
        grid = sampling_grid(preprocessing.img_size, augmentation, drawn)
        pixels, masks = self.warp(planes, torch.zeros(1), grid)
        return torch.cat([pixels.mul(255).round(), masks[:, None]], 1).to(torch.uint8)[0]

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """See `Task`: cross-entropy and Dice, each with weight 1."""
        return (cross_entropy(logits, targets, label_smoothing) + dice_loss(logits, targets)).mean()

    def tally(self, classes: int) -> Tally:
        """See `Task`."""
        return Confusion(classes)

    def chance(self, classes: int) -> float:
        """See `Task`: of C² pixels, the intersection of a class and its answer has 1, their union 2 C - 1."""
        return 1 / (2 * classes - 1)

    def answers(self, logits: Tensor) -> Tensor:
        """See `Task`: (B, H, W) uint8."""
        return logits.argmax(1).to(torch.uint8)

    def right(self, answers: Tensor, targets: Tensor) -> Tensor | None:
        """See `Task`: None."""
        return None

    def describe(self, answers: Tensor, targets: Tensor, classes: Sequence[str]) -> str:
        """See `Task`: the share of correct pixels."""
        known = targets != NO_CLASS
        share = float((answers == targets)[known].double().mean()) if bool(known.any()) else 0.0
        return f"{share:.1%} of pixels"

    def subject(self, targets: Tensor, classes: Sequence[str]) -> str:
        """See `Task`: the most frequent class."""
        known = targets[targets != NO_CLASS]
        return f"mostly {classes[int(known.mode().values)]}" if len(known) else "no class"

    def panels(
        self, targets: Tensor, dense: Tensor, pruned: Tensor, colours: Sequence[tuple[int, int, int]]
    ) -> "list[tuple[str, npt.NDArray[Any]]]":
        """See `Task`: the mask and both answers in the colours of the classes; pixels without a class are black."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: len(colours)] = colours
        shown = (("mask", targets), ("dense", dense), ("pruned", pruned))
        return [(caption, palette[classes.cpu().numpy().astype(np.uint8)]) for caption, classes in shown]


SEGMENTATION = Segmentation()
