"""The metric that scores a study. The column `top1` holds its value, whatever the task.

Every metric is a number from 0 to 1; higher is better. Top-1 accuracy is a share of images, so two schedules can be
compared image by image and the score has a confidence interval. Mean IoU is a ratio of sums over all pixels, not a
mean over images, so neither applies.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its name in settings, JSON and databases.
        label: its name in text for people.
        title: its name as the heading of a column.
        of_images: whether it is a share of images.
        task: the task that it scores.
    """

    name: str
    label: str
    title: str
    of_images: bool
    task: str


TOP1 = Metric("top1", "top-1", "Top-1", of_images=True, task="classification")
MIOU = Metric("miou", "mIoU", "mIoU", of_images=False, task="segmentation")
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (TOP1, MIOU)}
