"""Segmentation as a task: a class for each pixel, some of them without one.

The score is mean IoU: for each class TP / (TP + FP + FN) over all pixels of all images, and the mean over the
classes that occur in a mask or an answer. F1 is 2 TP / (2 TP + FP + FN), its mean over the same classes mF1; OA is
the share of pixels that are right. Pixels without a class count nowhere, but for the agreement of two models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

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
    from search.data.sources import Augmentation, Split
    from search.data.tiles import TileSplit

DICE_SMOOTHING = 1.0  # pixels, added above and below


class Confusion(Tally):
    """Pixels by their class and their answer."""

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
        """See `Tally`: of each image the mean over its pixels."""
        return float(self.sums[1] / self.sums[0])

    @property
    def matrix(self) -> Tensor:
        """(C, C) pixels, by class and then by answer."""
        return self.sums[2:].view(self._classes, self._classes)

    @property
    def score(self) -> float:
        """Mean IoU; 0 where no pixel has a class."""
        ious = self._ious()
        return float(ious[~ious.isnan()].mean()) if bool((~ious.isnan()).any()) else 0.0

    def _ious(self) -> Tensor:
        right = self.matrix.diagonal()
        return right / (self.matrix.sum(0) + self.matrix.sum(1) - right)  # NaN for a class that does not occur

    def details(self, classes: Sequence[str]) -> dict[str, float]:
        """See `Tally`: mf1, oa, and each class's IoU; classes that do not occur have none."""
        right, total = self.matrix.diagonal(), self.matrix.sum()
        if not total:
            return {}
        f1 = 2 * right / (self.matrix.sum(0) + self.matrix.sum(1))
        found = {"mf1": float(f1[~f1.isnan()].mean()), "oa": float(right.sum() / total)}
        ious = zip(classes, self._ious().tolist(), strict=True)
        return found | {f"iou {name}": iou for name, iou in ious if iou == iou}


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Return for each image (B,) the mean over its pixels with a class; 0 if it has none."""
    losses = F.cross_entropy(
        logits, targets, reduction="none", ignore_index=NO_CLASS, label_smoothing=label_smoothing
    )
    known = (targets != NO_CLASS).flatten(1).sum(1)
    return losses.flatten(1).sum(1) / known.clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return for each image (B,) one minus the mean soft Dice of the classes that are in its mask; 0 if none are.

    Dice of a class is (2 Σ p t + 1) / (Σ p + Σ t + 1) over the pixels with a class, p the model's share (V-Net,
    arXiv:1606.04797, with the first powers below).
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
    """A class for each pixel."""

    name, metric = "segmentation", MIOU

    def read(self, split: "Split", index: int, preprocessing: "Preprocessing") -> Tensor:
        """See `Task`: colours and the mask, both stretched to the model's size, the mask to the nearest pixel."""
        size = preprocessing.img_size[::-1]
        image = np.array(split.image(index).resize(size, preprocessing.resampling))
        mask = np.array(cast("TileSplit", split).mask(index).resize(size, Image.Resampling.NEAREST))
        return torch.from_numpy(np.concatenate([image, mask[..., None]], 2)).permute(2, 0, 1)

    def targets(self, planes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`: the masks (B, H, W) int64."""
        return planes[:, :3], planes[:, 3].long()

    def move(self, planes: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`; what comes in at the edges is black and has no class."""
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
        """See `Task`: the tile, moved about as those in memory are."""
        from search.data.transforms import moved_grid

        planes = self.read(split, index, preprocessing)[None]
        moves = torch.from_numpy(random.random((1, 5))).float()
        grid = moved_grid(preprocessing.img_size, augmentation, moves)
        pixels, masks = self.move(planes, torch.zeros(1), grid)
        return torch.cat([pixels.mul(255).round(), masks[:, None]], 1).to(torch.uint8)[0]

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        """See `Task`: cross-entropy and Dice, each with weight 1."""
        return (cross_entropy(logits, targets, label_smoothing) + dice_loss(logits, targets)).mean()

    def tally(self, classes: int) -> Tally:
        """See `Task`."""
        return Confusion(classes)

    def chance(self, classes: int) -> float:
        """See `Task`: of C² pixels one is right, and 2 C - 1 are in the class or answered with it."""
        return 1 / (2 * classes - 1)

    def answers(self, logits: Tensor) -> Tensor:
        """See `Task`: (B, H, W) uint8."""
        return logits.argmax(1).to(torch.uint8)

    def right(self, answers: Tensor, targets: Tensor) -> Tensor | None:
        """See `Task`: None."""
        return None

    def describe(self, answers: Tensor, targets: Tensor, classes: Sequence[str]) -> str:
        """See `Task`: how many pixels are right."""
        known = targets != NO_CLASS
        share = float((answers == targets)[known].double().mean()) if bool(known.any()) else 0.0
        return f"{share:.1%} of pixels"

    def subject(self, targets: Tensor, classes: Sequence[str]) -> str:
        """See `Task`: the class that most pixels have."""
        known = targets[targets != NO_CLASS]
        return f"mostly {classes[int(known.mode().values)]}" if len(known) else "no class"

    def panels(
        self, targets: Tensor, dense: Tensor, pruned: Tensor, colours: Sequence[tuple[int, int, int]]
    ) -> "list[tuple[str, npt.NDArray[Any]]]":
        """See `Task`: the mask and both answers in the classes' colours; black has no class."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: len(colours)] = colours
        shown = (("mask", targets), ("dense", dense), ("pruned", pruned))
        return [(caption, palette[classes.cpu().numpy().astype(np.uint8)]) for caption, classes in shown]


SEGMENTATION = Segmentation()
