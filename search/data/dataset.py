"""Data sets by name, as batches that a model takes: `open_data("folder:PATH").batches(…)`.

Geometry (resize, centre crop) is timm's, from the model's `pretrained_cfg`. Images are kept as uint8
after it and normalised by the batch, which spares two cores most of the work; a split that would need
more than `MEMORY_LIMIT` is decoded anew each time instead, with the same result.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.data import decoding
from search.data.classification import CLASSIFICATION
from search.data.decoding import chunked, read_images, stream_images
from search.data.preprocessing import Preprocessing
from search.data.sources import (
    Augmentation,
    EmbeddedSource,
    FolderSource,
    HubSource,
    Source,
    Split,
    TorchvisionSource,
)
from search.data.task import Task
from search.data.tasks import task_named
from search.data.tiles import TileSource
from spaces.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from ssm_models import PrunableModel

ORDER_SEED = 0
BATCH_SIZE = 100
SPLITS = ("train", "val", "test")
SPECS = ("embedded", "folder:PATH", "torchvision:NAME[:ROOT]", "hf:NAME", "segmentation:PATH")

Batch = tuple[Tensor, Tensor]


def open_data(spec: str) -> "ImageData":
    """Open a data set by one of `SPECS`; ROOT is `data` if not given.

    Only names and labels are read here; images when they are asked for.

    Raises:
        UsageError: the text is malformed or names nothing known.
        DataError: what it names is missing or broken.
    """
    kind, _, rest = spec.strip().partition(":")
    if kind == "embedded" and not rest:
        return ImageData("embedded", EmbeddedSource())
    if kind == "folder" and rest:
        return ImageData(f"folder:{rest}", FolderSource(Path(rest).expanduser()))
    if kind == "torchvision" and rest:
        name, _, root = rest.partition(":")
        return ImageData(spec.strip(), TorchvisionSource(name, Path(root or "data").expanduser()))
    if kind == "hf" and rest:
        return ImageData(f"hf:{rest}", HubSource(rest))
    if kind == "segmentation" and rest:
        return ImageData(f"segmentation:{rest}", TileSource(Path(rest).expanduser()))
    known = next((form for form in SPECS if form.partition(":")[0] == kind), None)
    if known is None:
        raise UnknownNameError("data set", spec, SPECS)
    raise UsageError(f"data {spec!r}: expected {known}")


class ImageData:
    """Labelled images in the splits `train`, `val` and, where there is one, `test`, each opened when first needed.

    Attributes:
        spec: the text that opens it again.
        classes: names of the classes, by label.
        augmentation: what training may do to an image without changing its class.
        task: what is to be answered.
        colours: of the classes, as (red, green, blue), where answers are pictures.
    """

    def __init__(self, spec: str, source: Source) -> None:
        self.spec = spec
        self.classes = list(source.classes)
        self.augmentation: Augmentation = source.augmentation
        self.task: Task = task_named(getattr(source, "task", CLASSIFICATION.name))
        self.colours: Sequence[tuple[int, int, int]] = getattr(source, "colours", ())
        self._source = source
        self._opened: dict[str, Split] = {}

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def size(self, split: str = "val") -> int:
        """How many images a split has; DataError when it is missing."""
        return len(self._split(split).labels)

    def digest(self, split: str = "val") -> str:
        """Return the SHA-256 (hex) of a split: classes, labels, and what the images contain.

        Images in memory count by their pixels and files by their names and bytes; beyond 1 GiB, files
        count by names and sizes alone, so that a study on ImageNet does not start with reading it all.
        """
        chosen = self._split(split)
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(chosen.labels.astype("<i8").tobytes())
        chosen.update(digest)
        return digest.hexdigest()

    def check_classes(self, num_classes: int, model: str = "the model") -> None:
        """Raise DataError unless a model of `num_classes` classes fits."""
        if num_classes != self.num_classes:
            raise DataError(
                f"{self.spec} has {self.num_classes} classes but {model} answers with {num_classes}; "
                "give a checkpoint trained on these classes"
            )

    def check_order(self, trained: Sequence[str], weights: str) -> None:
        """Raise DataError if a class of this name is another output of the weights; unknown names say nothing."""
        place = {name: index for index, name in enumerate(trained)}
        for index, name in enumerate(self.classes):
            if place.get(name, index) != index:
                raise DataError(
                    f"{self.spec}: class {name!r} is number {index + 1}, but {weights} learned it as number "
                    f"{place[name] + 1}; bring the classes into the order that it was trained with"
                )

    def check_model(self, model: "PrunableModel") -> None:
        """Raise DataError unless a model has this task and as many classes."""
        if model.task != self.task.name:
            raise DataError(f"{self.spec} is for {self.task.name}, but {model.model_name} does {model.task}")
        self.check_classes(model.num_classes, model.model_name)

    def batches(
        self,
        model_cfg: Mapping[str, Any],
        img_size: tuple[int, int],
        split: str = "val",
        images: int | None = None,
        batch_size: int = BATCH_SIZE,
        skip: int = 0,
    ) -> "Batches":
        """Return `images` images (all if None), after the first `skip`, in an order that is always the same.

        The order is shuffled by a fixed seed and mixes the classes, so that any beginning of it has
        them in nearly their shares of the whole split.

        Raises:
            UsageError: `images` or `batch_size` is below 1, or `skip` is negative or leaves no images.
            DataError: the split is missing.
        """
        if batch_size < 1 or (images is not None and images < 1):
            raise UsageError(f"images={images}, batch_size={batch_size}: both must be at least 1")
        chosen = self._split(split)
        if not 0 <= skip < len(chosen.labels):
            raise UsageError(f"skip={skip}: {split} has {len(chosen.labels)} images; fewer can be left out")
        order = mixed_order(chosen.labels)[skip:][:images]
        return Batches(chosen, order, Preprocessing(model_cfg, img_size), batch_size, self.task)

    def training_split(self) -> Split:
        """The train split, for `search.augment`; DataError when it is missing."""
        return self._split("train")

    def _split(self, name: str) -> Split:
        if name not in SPLITS:
            raise UnknownNameError("split", name, SPLITS)
        if name not in self._opened:
            self._opened[name] = self._source.split(name)
        return self._opened[name]


class Batches:
    """Images of a split in a fixed order: iterate as often as you like, in one thread at a time.

    Each item is (images, targets): (B, 3, H, W) float32, normalised, and what the task asks for, int64: labels (B,)
    or masks (B, H, W), on the CPU. The pixels are read at the first pass and kept when they are small.

    Attributes:
        labels: the split's, in order, (N,) int64.
        images: how many images there are, N.
        batch_size: images in a batch; the last may have fewer.
    """

    def __init__(
        self,
        split: Split,
        order: NDArray[np.int64],
        preprocessing: Preprocessing,
        batch_size: int,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.labels = torch.from_numpy(split.labels[order])
        self.images = len(order)
        self.batch_size = batch_size
        self._split = split
        self._order = order
        self._preprocessing = preprocessing
        self._task = task
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, targets); DataError names an image that is broken."""
        labels = torch.split(self.labels, self.batch_size)
        for planes, label in zip(self._planes(), labels, strict=True):
            pixels, targets = self._task.targets(planes, label)
            yield self._preprocessing.normalise(pixels), targets

    def pixels(self, images: int) -> Tensor:
        """Return the first images before normalisation, (N, 3, H, W) uint8, as for a picture of them."""
        if self._kept is not None:
            return self._kept[:images, :3]
        return read_images(self._read, self._order[:images].tolist(), self.batch_size)[:, :3]

    def _planes(self) -> Iterator[Tensor]:
        if self._preprocessing.bytes_for(self.images) > decoding.MEMORY_LIMIT:
            chunks = chunked(self._order.tolist(), self.batch_size)
            return stream_images(self._read, chunks)
        if self._kept is None:
            self._kept = read_images(self._read, self._order.tolist(), self.batch_size)
        return iter(torch.split(self._kept, self.batch_size))

    def _read(self, index: int) -> Tensor:
        return self._task.read(self._split, index, self._preprocessing)


def mixed_order(labels: NDArray[np.int64], seed: int = ORDER_SEED) -> NDArray[np.int64]:
    """Return all indices, shuffled so that every beginning has the classes in nearly equal shares of each.

    Image r of the n of its class stands at (r + ½)/n of the way; ties are broken at random.
    """
    random = np.random.RandomState(seed)  # its stream is frozen across versions of numpy
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = random.permutation(np.flatnonzero(labels == label))
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.lexsort((random.permutation(len(labels)), place)).astype(np.int64)
