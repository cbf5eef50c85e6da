"""What the score of a study is: the column `top1` holds it, whatever the task, and the study names it.

A share from 0 to 1 of which more is better. Accuracy is a share of images, so two schedules can race image by image
and an interval says how sure it is; mean IoU is a ratio of sums over all pixels, and no mean over images.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        name: as settings, JSON and databases have it.
        label: for people.
        title: the same at the head of a column.
        of_images: whether it is a share of images.
        task: what is scored by it.
    """

    name: str
    label: str
    title: str
    of_images: bool
    task: str


TOP1 = Metric("top1", "top-1", "Top-1", of_images=True, task="classification")
MIOU = Metric("miou", "mIoU", "mIoU", of_images=False, task="segmentation")
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (TOP1, MIOU)}
