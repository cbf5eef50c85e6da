"""Data sets by name, as batches that a model takes: `open_data("folder:PATH").batches(…)`.

Geometry (resize, centre crop) is timm's, from the model's `pretrained_cfg`. After it, images are kept in memory as
uint8 and normalised batch by batch. A split beyond the memory limit is decoded anew in every pass, with the same
result.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.data.class_order import NATURAL, TEXT, agrees, choices_text, is_ambiguous, misplaced, sorted_names
from search.data.classification import CLASSIFICATION
from search.data.decoding import MEMORY_LIMIT, chunked, read_images, stream_images
from search.data.image_order import DEFAULT_ORDER, image_order
from search.data.notes import DataNote
from search.data.preprocessing import Preprocessing
from search.data.source import Augmentation, Colour, Source, Split
from search.data.sources import EmbeddedSource, FolderSource, HubSource, TorchvisionSource
from search.data.splits import RelabelledSplit
from search.data.task import Task
from search.data.tasks import task_named
from search.data.tiles import TileSource
from spaces.errors import DataError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from ssm_models import PrunableModel

BATCH_SIZE = 100
SPLITS = ("train", "val", "test")

Batch = tuple[Tensor, Tensor]


def _torchvision(rest: str) -> Source:
    name, _, root = rest.partition(":")
    return TorchvisionSource(name, Path(root or "data").expanduser())


@dataclass(frozen=True)
class Reader:
    """How the data sets of a kind are named and opened.

    Attributes:
        form: what users write, KIND or KIND:ARGUMENT.
        open: opens the data set, given what follows the first colon.
    """

    form: str
    open: Callable[[str], Source]

    @property
    def takes_argument(self) -> bool:
        """Whether something must follow the kind."""
        return ":" in self.form


READERS = {
    reader.form.partition(":")[0]: reader
    for reader in (
        Reader("embedded", lambda _: EmbeddedSource()),
        Reader("folder:PATH", lambda path: FolderSource(Path(path).expanduser())),
        Reader("torchvision:NAME[:ROOT]", _torchvision),
        Reader("hf:NAME", HubSource),
        Reader("segmentation:PATH", lambda path: TileSource(Path(path).expanduser())),
    )
}
"""The kinds of data sets; a new one is a line here."""


def open_data(
    spec: str,
    memory_limit: int = MEMORY_LIMIT,
    *,
    class_order: str | None = None,
    fallback: str | None = None,
    quiet: bool = False,
) -> "ImageData":
    """Open a data set by its name. Names and labels are read now, images on demand.

    Args:
        spec: embedded, folder:PATH, torchvision:NAME[:ROOT] (ROOT defaults to `data`), hf:NAME or segmentation:PATH.
        memory_limit: bytes of uint8 pixels up to which a split is kept in memory.
        class_order: of the labels: text, natural, or a file with the name of a class in each line; by default the
            data set's own, in which folders are in text order until `ImageData.settle_order` decides.
        fallback: the order to take where `settle_order` would refuse.
        quiet: whether to leave out a split's notes, for the driver gives them; otherwise each is a `DataNote`.

    Raises:
        UsageError: the text is malformed or names nothing known.
        DataError: what it names is missing or broken.

    >>> data = open_data("embedded")
    >>> data.size("train"), data.size("val"), data.num_classes
    (4000, 1000, 10)
    """
    kind, _, argument = spec.strip().partition(":")
    if kind not in READERS:
        raise UnknownNameError("data set", spec, [reader.form for reader in READERS.values()])
    reader = READERS[kind]
    if bool(argument) != reader.takes_argument:
        raise UsageError(f"data {spec!r}: expected {reader.form}")
    name = f"{kind}:{argument}" if argument else kind
    source = reader.open(argument)
    return ImageData(name, source, memory_limit, class_order=class_order, fallback=fallback, quiet=quiet)


class ImageData:
    """Labelled images in the splits `train`, `val` and, if there is one, `test`. Each is opened when first needed.

    Args:
        spec: the text that opens the data set again.
        source: opens the splits.
        memory_limit, class_order, fallback, quiet: as for `open_data`.

    Attributes:
        spec: the text that opens the data set again.
        classes: names of the classes, by label.
        class_order: text, natural or a file, as it opens the data set again; None if names leave no choice.
        augmentation: the transforms of a training image that keep its class.
        task: what is to be predicted.
        colours: a colour for each class, if the task's answers are shown as pictures; otherwise empty.
        memory_limit: as for `open_data`.

    Raises:
        UsageError, DataError: the order of the classes is none, or cannot be had; see `sorted_names`.
    """

    def __init__(
        self,
        spec: str,
        source: Source,
        memory_limit: int = MEMORY_LIMIT,
        *,
        class_order: str | None = None,
        fallback: str | None = None,
        quiet: bool = False,
    ) -> None:
        self.spec = spec
        self.classes = list(source.classes)
        self.class_order: str | None = None
        self.augmentation: Augmentation = source.augmentation
        self.task: Task = task_named(source.task)
        self.colours: Sequence[Colour] = source.colours
        self.memory_limit = memory_limit
        self._source = source
        self._fallback = fallback
        self._quiet = quiet
        self._opened: dict[str, Split] = {}
        if class_order is not None:
            self._reorder(class_order)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def size(self, split: str = "val") -> int:
        """Return the number of images in a split; DataError if it is missing."""
        return len(self._split(split).labels)

    def digest(self, split: str = "val") -> str:
        """Return the SHA-256 (hex) of a split: its classes, labels and the content of its images.

        Images in memory count by their pixels, files by their names and bytes. Beyond 1 GiB files count by name and
        size only, so that a study on ImageNet need not read all of it first.
        """
        chosen = self._split(split)
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(chosen.labels.astype("<i8").tobytes())
        chosen.update(digest)
        return digest.hexdigest()

    def check_classes(self, num_classes: int, model: str = "the model") -> None:
        """Raise a DataError unless the data set has `num_classes` classes."""
        if num_classes != self.num_classes:
            raise DataError(
                f"{self.spec} has {self.num_classes} classes but {model} answers with {num_classes}; "
                "give a checkpoint trained on these classes"
            )

    def settle_order(self, trained: Sequence[str] | None, weights: str | None) -> None:
        """Settle which output of a model is which class, before any label is used.

        If the names of the classes could be ordered in two ways, and `class_order` does not say which, the classes
        that the weights were trained on decide.

        Args:
            trained: names of the classes, in the order of the outputs, if the weights say them. Names that the data
                set lacks are ignored.
            weights: what messages call the weights; None for random ones, for which any order will do.

        Raises:
            DataError: the weights learned a class as another output, or nothing says which of two orders they
                learned.
        """
        known = trained or []
        open_order = self.class_order is None and not self._source.declares_order
        if open_order and is_ambiguous(self.classes):
            fitting = [order for order in (TEXT, NATURAL) if agrees(sorted_names(self.classes, order), known)]
            if len(fitting) == 1:
                self._reorder(fitting[0])
            elif fitting and (order := TEXT if weights is None else self._fallback):
                self._reorder(order)
            elif fitting:
                raise DataError(
                    f"{self.spec}: class {choices_text(self.classes)}, and {weights} do not say in which order they "
                    "were trained; choose with --class-order text, natural, or a file of class names"
                )
        self.check_order(known, weights or "random weights")

    def check_order(self, trained: Sequence[str], weights: str) -> None:
        """Raise a DataError if the weights were trained with a class of the same name as another output.

        Args:
            trained: names of the classes, in the order of the outputs. Names that the data set lacks are ignored.
            weights: what the message calls the weights.
        """
        index = misplaced(self.classes, trained)
        if index is not None:
            name = self.classes[index]
            raise DataError(
                f"{self.spec}: class {name!r} is number {index + 1}, but {weights} learned it as number "
                f"{trained.index(name) + 1}; bring the classes into the order that it was trained with: --class-order"
            )

    def check_model(self, model: "PrunableModel") -> None:
        """Raise a DataError unless a model has this task and this number of classes."""
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
        order: str = DEFAULT_ORDER,
    ) -> "Batches":
        """Return images of a split in a fixed order.

        Args:
            model_cfg, img_size: as for `Preprocessing`.
            split: train, val or test.
            images: number of images; None for all.
            batch_size: images per batch.
            skip: number of images to leave out at the beginning of the order.
            order: the name of an order, as for `image_order`. A study has its own.

        Raises:
            UnknownNameError: there is no such order.
            UsageError: `images` or `batch_size` is below 1, or `skip` is negative or leaves no images.
            DataError: the split is missing.
        """
        if batch_size < 1 or (images is not None and images < 1):
            raise UsageError(f"images={images}, batch_size={batch_size}: both must be at least 1")
        chosen = self._split(split)
        if not 0 <= skip < len(chosen.labels):
            raise UsageError(f"skip={skip}: {split} has {len(chosen.labels)} images; fewer can be left out")
        indices = image_order(chosen.labels, order)[skip:][:images]
        preprocessing = Preprocessing(model_cfg, img_size)
        return Batches(chosen, indices, preprocessing, batch_size, self.task, self.memory_limit)

    def training_split(self) -> Split:
        """Return the train split; DataError if it is missing."""
        return self._split("train")

    def first_turned(self, split: str) -> str | None:
        """Return the name of an image of a split that its EXIF orientation turns; None if there is none.

        The headers of all images are read, up to the first one.
        """
        return self._split(split).first_turned()

    def _split(self, name: str) -> Split:
        if name not in SPLITS:
            raise UnknownNameError("split", name, SPLITS)
        if name not in self._opened:
            split = self._source.split(name)
            for note in () if self._quiet else split.notes():
                warnings.warn(note, DataNote, stacklevel=2)
            self._opened[name] = self._relabelled(split)
        return self._opened[name]

    def _reorder(self, order: str) -> None:
        """Bring the classes into another order; splits are opened anew."""
        if self.task is not CLASSIFICATION:
            raise UsageError(f"--class-order {order}: the description of {self.spec} says which class is which")
        if len(set(self.classes)) < len(self.classes):
            raise UsageError(f"--class-order {order}: two classes of {self.spec} have the same name")
        self.classes = sorted_names(self.classes, order)
        self.class_order = order
        self._opened.clear()

    def _relabelled(self, split: Split) -> Split:
        if self.classes == list(self._source.classes):
            return split
        label = {name: index for index, name in enumerate(self.classes)}
        labels = np.array([label[name] for name in self._source.classes], dtype=np.int64)
        return RelabelledSplit(split, labels[split.labels])


class Batches:
    """Images of a split in a fixed order. Can be iterated any number of times, in one thread at a time.

    Each item is (images, targets) on the CPU: (B, 3, H, W) float32, normalised, and the task's targets, int64: labels
    (B,) or masks (B, H, W). The pixels are read in the first pass and kept if they fit in the memory limit.

    Args:
        split: the split.
        order: indices of its images, (N,).
        preprocessing: for the model that takes the batches.
        batch_size: images per batch.
        task: gives the targets.
        memory_limit: as for `open_data`.

    Attributes:
        labels: the labels in order, (N,) int64.
        images: number of images, N.
        batch_size: images per batch; the last may have fewer.
    """

    def __init__(
        self,
        split: Split,
        order: NDArray[np.int64],
        preprocessing: Preprocessing,
        batch_size: int,
        task: Task = CLASSIFICATION,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.labels = torch.from_numpy(split.labels[order])
        self.images = len(order)
        self.batch_size = batch_size
        self._split = split
        self._order = order
        self._preprocessing = preprocessing
        self._task = task
        self._in_memory = preprocessing.bytes_for(self.images) <= memory_limit
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, targets); DataError names an image that is broken."""
        labels = torch.split(self.labels, self.batch_size)
        for planes, label in zip(self._planes(), labels, strict=True):
            pixels, targets = self._task.targets(planes, label)
            yield self._preprocessing.normalise(pixels), targets

    def pixels(self, images: int) -> Tensor:
        """Return the first images before normalisation, (N, 3, H, W) uint8, for showing them."""
        if self._kept is not None:
            return self._kept[:images, :3]
        return read_images(self._read, self._order[:images].tolist(), self.batch_size)[:, :3]

    def _planes(self) -> Iterator[Tensor]:
        if not self._in_memory:
            return stream_images(self._read, chunked(self._order.tolist(), self.batch_size))
        if self._kept is None:
            self._kept = read_images(self._read, self._order.tolist(), self.batch_size)
        return iter(torch.split(self._kept, self.batch_size))

    def _read(self, index: int) -> Tensor:
        return self._task.read(self._split, index, self._preprocessing)
