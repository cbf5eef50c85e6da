"""Training batches: shuffled and augmented anew in every epoch, and equal for equal seeds.

An epoch depends on its seed alone: not on what was drawn before, on the number of decoding threads, or on the number
of processes that share each batch. So an interrupted training can be resumed exactly.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from search.data.dataset import Batch, ImageData
from search.data.decoding import read_images, stream_images
from search.data.preprocessing import Preprocessing
from search.data.transforms import draw_transforms, sampling_grid
from search.training.data_parallel import SINGLE_PROCESS, DataParallelRank
from spaces.errors import DataError


class TrainingBatches:
    """The train split in random order, each image changed within the data set's `Augmentation`.

    A split that fits in memory is transformed batch by batch, as tensors. A larger one is decoded anew in each epoch,
    with a random crop of each image, as is usual for photographs.

    Args:
        data: the data set.
        preprocessing: for the model that is trained.
        batch_size: images per step, over all ranks; at most the whole split is used.
        rank: which part of each batch to give.

    Attributes:
        images: number of images in the split.
        batch_size: images in every batch, over all ranks. Each epoch leaves out the remainder, chosen at random.

    Raises:
        DataError: the split is missing or has fewer than two images.
        UsageError: there are more ranks than a batch has pairs.
    """

    def __init__(
        self, data: ImageData, preprocessing: Preprocessing, batch_size: int, rank: DataParallelRank = SINGLE_PROCESS
    ) -> None:
        self._split = data.training_split()
        self.images = len(self._split.labels)
        if self.images < 2:
            raise DataError(f"{data.spec}: {self.images} training image; at least 2 are needed")
        self.batch_size = min(batch_size, self.images)
        self._augmentation = data.augmentation
        self._labels = torch.from_numpy(self._split.labels)
        self._preprocessing = preprocessing
        self._task = data.task
        self._in_memory = preprocessing.bytes_for(self.images) <= data.memory_limit
        self._kept: Tensor | None = None
        self._mine = rank.batch_indices(self.batch_size)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self.images // self.batch_size

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield this rank's part of each batch: images (b, 3, H, W) float32, normalised, and the task's targets.

        Raises:
            DataError: an image is broken; the message names it.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.images, generator=generator)[: len(self) * self.batch_size]
        batches = [batch[self._mine] for batch in torch.split(order, self.batch_size)]
        if self._in_memory:
            yield from self._transformed(batches, generator)
        else:
            yield from self._cropped(batches, seed)

    def _transformed(self, batches: list[Tensor], generator: torch.Generator) -> Iterator[Batch]:
        if self._kept is None:
            self._kept = read_images(self._read, range(self.images), 256)
        for batch in batches:
            drawn = draw_transforms(self.batch_size, generator)[self._mine]  # all ranks draw for the whole batch
            grid = sampling_grid(self._preprocessing.img_size, self._augmentation, drawn)
            pixels, targets = self._task.warp(self._kept[batch], self._labels[batch], grid)
            yield self._preprocessing.normalise(pixels), targets

    def _cropped(self, batches: list[Tensor], seed: int) -> Iterator[Batch]:
        crops = stream_images(lambda index: self._crop(index, seed), [batch.tolist() for batch in batches])
        for batch, planes in zip(batches, crops, strict=True):
            pixels, targets = self._task.targets(planes, self._labels[batch])
            yield self._preprocessing.normalise(pixels), targets

    def _read(self, index: int) -> Tensor:
        return self._task.read(self._split, index, self._preprocessing)

    def _crop(self, index: int, seed: int) -> Tensor:
        """Return a random crop of an image, drawn from the image's own generator, so that threads do not matter."""
        random = np.random.default_rng((seed, index))
        return self._task.crop(self._split, index, self._preprocessing, self._augmentation, random)
