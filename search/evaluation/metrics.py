"""What an evaluation measures."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from search.data.task import Tally


@dataclass(frozen=True)
class Metrics:
    """How a schedule does on a list of images.

    Attributes:
        top1: the task's score in 0..1, such as accuracy.
        loss: mean cross-entropy.
        agreement: share of answers that are the dense model's, of images or of their pixels.
        images: how many were run; all of them unless `stopped`.
        outcomes: (images,) bool: which were right, or in a race for agreement, which were answered as the dense model
            does; None where an image is more than right or wrong.
        stopped: whether the candidate lost its race; the figures are then those of `images` images.
        estimate: of a stopped one: the share of `outcomes` over all images, by its difference to the dense model.
        seconds: what the evaluation took; what candidates share counts for the first one.
        forward_seconds: what its forward passes took.
        tally: all that was counted, for further figures; a worker's results are without it.
    """

    top1: float
    loss: float
    agreement: float
    images: int
    outcomes: NDArray[np.bool_] | None
    stopped: bool = False
    estimate: float | None = None
    seconds: float = 0.0
    forward_seconds: float = 0.0
    tally: Tally | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes, as medians.

    Attributes:
        ms: milliseconds an image.
        ratio: to the dense model's.
    """

    ms: float
    ratio: float


@dataclass(frozen=True)
class DenseAnswers:
    """How the dense model does on the same images.

    Attributes:
        metrics: of the dense model.
        answers: (images, …), its `Task.answers` to all of them, on the CPU.
    """

    metrics: Metrics
    answers: Tensor
