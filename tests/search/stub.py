"""A model with predefined answers, and images for it: evaluations without arithmetic."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from spaces import PruningSchedule, Stage, TokenLayout
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView

Batches = list[tuple[Tensor, Tensor]]


class Stub(nn.Module):
    """Six blocks that do nothing, and a head that returns the first pixels of an image as logits; fails on demand.

    Attributes:
        fits: images that fit into memory.
        error: of those that do not.
        broken: logit of the last image of a batch under `breaks`.
        answers: by schedule, on which images (of all, in order) the answer is the label 3; else it is 4.
        ran: each forward pass, as schedule and images.
    """

    task, num_classes = "classification", 10
    layout = TokenLayout("stub", (28, 28), (Stage(6, 7, 7),))

    def __init__(self, fits: int = 100, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.fits, self.error = fits, error
        self.schedule = PruningSchedule()
        self.broken: tuple[PruningSchedule, float] | None = None
        self.answers: dict[PruningSchedule, NDArray[np.bool_]] = {}
        self.ran: list[tuple[PruningSchedule, int]] = []
        self.blocks = [nn.Identity()] * 6

    def set_schedule(self, schedule: PruningSchedule) -> None:
        self.layout.check(schedule)
        self.schedule = schedule

    def embed(self, images: Tensor) -> Tensor:
        if len(images) > self.fits:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return images[:, 0, :1, :10].clone()

    def begin(self, images: Tensor) -> tuple[Tensor, TokenView]:
        return self.embed(images), self.first_view(images)

    def first_view(self, images: Tensor, index: int = 0, aside: tuple[Tensor, ...] = ()) -> TokenView:
        return TokenView(TokenSets(49), torch.zeros(len(images), dtype=torch.long), self.schedule.method)

    def step(self, index: int, x: Tensor, view: TokenView, keep: Any) -> tuple[Tensor, TokenView]:
        return x, view

    def classify(self, x: Tensor, view: TokenView) -> Tensor:
        self.ran.append((self.schedule, len(x)))
        logits = x[:, 0].clone()
        if self.schedule in self.answers:
            right = torch.from_numpy(self.answers[self.schedule])[logits[:, 0].long()]
            logits = F.one_hot(torch.where(right, 3, 4), 10).float()
        if self.broken is not None and self.schedule == self.broken[0]:
            logits[-1, 3] = self.broken[1]
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(*self.begin(images))

    @property
    def sizes(self) -> list[int]:
        """The images of each forward pass."""
        return [images for _, images in self.ran]


def numbered(images: int, batch: int) -> Batches:
    """Batches of images that carry their number in their first pixel, all of class 3."""
    pixels = torch.zeros(images, 3, 28, 28)
    pixels[:, 0, 0, 0] = torch.arange(images)
    return [(part, torch.full((len(part),), 3)) for part in pixels.split(batch)]
