"""Batches to train on: shuffled and moved about anew each epoch, the same for the same seed.

What an epoch gives depends on its seed alone, not on what was drawn before, on how many threads decode or
on how many processes share each batch, so a training that was interrupted goes on exactly.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from search.data import decoding
from search.data.dataset import Batch, ImageData
from search.data.decoding import read_images, stream_images
from search.data.preprocessing import Preprocessing
from search.data.transforms import draw_moves, moved_grid
from search.training.data_parallel import Share
from spaces.errors import DataError

WHOLE = Share()


class TrainingBatches:
    """The train split in random order, each image changed within the data set's `Augmentation`.

    A split that fits in memory is moved by the batch, on tensors; a larger one gets a random crop of
    each image while it is decoded, as is usual for photographs.

    Attributes:
        images: how many images there are in the split.
        batch_size: images in every batch, over all processes; the odd ones left over sit an epoch out.

    Raises:
        DataError: the split is missing or has not even one batch.
        UsageError: a process would get no part of a batch.
    """

    def __init__(self, data: ImageData, preprocessing: Preprocessing, batch_size: int, share: Share = WHOLE) -> None:
        self._split = data.training_split()
        self.images = len(self._split.labels)
        self.batch_size = min(batch_size, self.images)
        self.augmentation = data.augmentation
        self._labels = torch.from_numpy(self._split.labels)
        self._preprocessing = preprocessing
        self._task = data.task
        self._kept: Tensor | None = None
        if self.images < 2:
            raise DataError(f"{data.spec}: {self.images} training image; at least 2 are needed")
        self._mine = share.places(self.batch_size)

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return self.images // self.batch_size

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield this process's part of each batch: images (b, 3, H, W) float32 normalised, and the task's targets."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.images, generator=generator)[: len(self) * self.batch_size]
        chunks = [chunk[self._mine] for chunk in torch.split(order, self.batch_size)]
        if self._preprocessing.bytes_for(self.images) > decoding.MEMORY_LIMIT:
            crops = stream_images(lambda index: self._crop(index, seed), [chunk.tolist() for chunk in chunks])
            for chunk, planes in zip(chunks, crops, strict=True):
                pixels, targets = self._task.targets(planes, self._labels[chunk])
                yield self._preprocessing.normalise(pixels), targets
            return
        if self._kept is None:
            self._kept = read_images(self._read, range(self.images), 256)
        for chunk in chunks:
            moves = draw_moves(self.batch_size, generator)[self._mine]  # of the whole batch, in every process
            grid = moved_grid(self._preprocessing.img_size, self.augmentation, moves)
            pixels, targets = self._task.move(self._kept[chunk], self._labels[chunk], grid)
            yield self._preprocessing.normalise(pixels), targets

    def _read(self, index: int) -> Tensor:
        return self._task.read(self._split, index, self._preprocessing)

    def _crop(self, index: int, seed: int) -> Tensor:
        """Return a random part of one image, drawn by the image's own generator whichever thread it is."""
        random = np.random.default_rng((seed, index))
        return self._task.crop(self._split, index, self._preprocessing, self.augmentation, random)
