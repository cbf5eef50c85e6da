"""Images with masks as tiles: `PATH/{train,val,test}/{images,masks}` and `PATH/classes.json`.

    {"classes": [{"name": "land", "color": "#8429F6"}, {"name": "road", "color": "#6EC1E4"}],
     "ignore": ["#9B9B9B"], "window": 256, "overlap": 0.5}

A mask has the name of its image, whatever the suffixes. Classes have a `color` each, then masks are read as colours,
palettes included; or an `id` each, then masks hold ids, in a palette's indices, in grey or in 16 bits. `ignore` lists
the colours or ids of pixels without a class.

Images are cut into windows of `window` pixels a side on the fly: those of train overlap by the share `overlap`, of
val and test by as little as it takes to cover an image.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from search.data.sources import BROKEN, SUFFIXES, Augmentation, FileSplit, Split
from spaces.errors import DataError

NO_CLASS = 255  # in a mask; so there are at most 255 classes

DESCRIPTION = "classes.json"
MOST_DECODED = 2**28  # bytes of whole images that a split keeps decoded: its tiles are read in a mixed order
# What is seen from above has no up; turned by more, corners without a class would be much of a tile.
FROM_ABOVE = Augmentation(shift=0.125, degrees=15.0, zoom=0.1, flip=True)
_MOST_SIDE = 2**16


@dataclass(frozen=True)
class Legend:
    """What the values of a mask mean.

    Attributes:
        names: of the classes.
        colours: of the classes, for pictures where masks hold ids.
        by_colour: whether masks are read as colours.
        values: ascending colours as 0xRRGGBB, or ids, that a mask may hold.
        labels: the class of each, `NO_CLASS` for those to ignore.
        window: pixels of a tile's side.
        overlap: share of a window that is in the next one too, in train.
    """

    names: list[str]
    colours: list[tuple[int, int, int]]
    by_colour: bool
    values: NDArray[np.int64]
    labels: NDArray[np.uint8]
    window: int
    overlap: float

    @classmethod
    def read(cls, path: Path) -> "Legend":
        """Read a description; DataError says what is wrong in it."""
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; it names the classes and their colours or ids") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as JSON ({error})") from None
        try:
            return cls._of(content)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}: {reason}") from None

    @classmethod
    def _of(cls, content: Any) -> "Legend":
        classes, ignored = content["classes"], content.get("ignore", [])
        window, overlap = content.get("window", 256), content.get("overlap", 0.5)
        if not 1 <= len(classes) <= NO_CLASS:
            raise ValueError(f"{len(classes)} classes: expected 1 to {NO_CLASS}")
        if not (isinstance(window, int) and 1 <= window <= _MOST_SIDE):
            raise ValueError(f"window {window!r}: expected pixels, such as 256")
        if not (isinstance(overlap, int | float) and 0 <= overlap <= 0.9):
            raise ValueError(f"overlap {overlap!r}: expected a share from 0 to 0.9")
        by_colour = "id" not in classes[0]
        key = "color" if by_colour else "id"
        values = [_value(one[key], by_colour) for one in classes] + [_value(one, by_colour) for one in ignored]
        if len(set(values)) < len(values):
            raise ValueError(f"two classes have the same {key}")
        order = np.argsort(values)
        labels = np.array([*range(len(classes)), *[NO_CLASS] * len(ignored)], dtype=np.uint8)
        colours = [_rgb(one["color"]) if "color" in one else _some_colour(i) for i, one in enumerate(classes)]
        names = [str(one["name"]) for one in classes]
        return cls(names, colours, by_colour, np.array(values)[order], labels[order], window, float(overlap))

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Return the classes (H, W) of a mask; DataError names the file and a value that means nothing."""
        try:
            with Image.open(path) as mask:
                wide = mask.mode.startswith(("I", "F"))
                if self.by_colour and wide:
                    raise DataError(
                        f"{path}: a mask of 16 bits has no colours; give the classes ids in {DESCRIPTION}"
                    )
                if not self.by_colour and mask.mode not in ("P", "L", "1") and not wide:
                    raise DataError(
                        f"{path}: a mask of colours ({mask.mode}); give the classes colours in {DESCRIPTION}"
                    )
                if self.by_colour:
                    rgb = np.asarray(mask.convert("RGB"), dtype=np.int64)
                    found = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
                else:
                    found = np.asarray(mask).astype(np.int64)
        except BROKEN as error:
            raise DataError(f"{path}: not a readable mask ({' '.join(str(error).split())})") from None
        place = np.searchsorted(self.values, found).clip(max=len(self.values) - 1)
        wrong = self.values[place] != found
        if wrong.any():
            y, x = (int(index[0]) for index in np.nonzero(wrong))
            value = f"colour #{found[y, x]:06X}" if self.by_colour else f"id {found[y, x]}"
            raise DataError(f"{path}: {value} at ({x}, {y}) is no class of {DESCRIPTION}, nor among those to ignore")
        classes: NDArray[np.uint8] = self.labels[place]
        return classes


def _value(given: Any, by_colour: bool) -> int:
    if by_colour:
        red, green, blue = _rgb(given)
        return red << 16 | green << 8 | blue
    if not isinstance(given, int) or not 0 <= given < 2**16:
        raise ValueError(f"id {given!r}: expected a whole number")
    return given


def _rgb(colour: Any) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(str(colour))[:3]  # ValueError: unknown color specifier
    return red, green, blue


def _some_colour(index: int) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(f"hsl({index * 137 % 360}, 70%, 55%)")[:3]
    return red, green, blue


@dataclass(frozen=True)
class Tile:
    """A window of an image: the image's number, and its upper left corner."""

    image: int
    left: int
    top: int


@dataclass
class TileSplit:
    """The tiles of a split; `labels` are the numbers of their images, so that any beginning has of all."""

    images: list[Path]
    masks: list[Path]
    tiles: list[Tile]
    legend: Legend
    root: Path
    _decoded: "OrderedDict[int, tuple[Image.Image, NDArray[np.uint8]]]" = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The image that each tile is of, (N,)."""
        return np.array([tile.image for tile in self.tiles], dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        """Return one tile as RGB; DataError names its file when that is broken."""
        return self._whole(self.tiles[index].image)[0].crop(self._box(index))

    def mask(self, index: int) -> Image.Image:
        """Return the classes of one tile, 8 bits a pixel; DataError names the file of a mask that is broken."""
        left, top, right, bottom = self._box(index)
        return Image.fromarray(self._whole(self.tiles[index].image)[1][top:bottom, left:right])

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed images and masks as `FileSplit` does, and how they are read."""
        legend = self.legend
        values = [legend.names, legend.by_colour, legend.values.tolist(), legend.labels.tolist(), legend.window]
        digest.update(json.dumps(values).encode())
        digest.update(json.dumps([(tile.image, tile.left, tile.top) for tile in self.tiles]).encode())
        FileSplit(self.labels, [*self.images, *self.masks], self.root).update(digest)

    def _box(self, index: int) -> tuple[int, int, int, int]:
        tile, window = self.tiles[index], self.legend.window
        return tile.left, tile.top, tile.left + window, tile.top + window

    def _whole(self, number: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        with self._lock:
            if number in self._decoded:
                self._decoded.move_to_end(number)
                return self._decoded[number]
        path = self.images[number]
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"{path}: an image of more than 8 bits ({image.mode}); convert it to 8-bit RGB")
                pair = image.convert("RGB"), self.legend.decode(self.masks[number])
        except BROKEN as error:
            raise DataError(f"{path}: not a readable image ({' '.join(str(error).split())})") from None
        size = 4 * pair[1].size
        with self._lock:
            if number not in self._decoded:
                self._decoded[number] = pair
                self._bytes += size
            while self._bytes > MOST_DECODED and len(self._decoded) > 1:
                _, (_, gone) = self._decoded.popitem(last=False)
                self._bytes -= 4 * gone.size
        return pair


class TileSource:
    """A folder as at the head of this module; a split may be missing until it is needed."""

    task = "segmentation"
    augmentation = FROM_ABOVE

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; expected {path}/train/images and {path}/train/masks")
        self.path = path
        self.legend = Legend.read(path / DESCRIPTION)
        self.classes = self.legend.names
        self.colours: Sequence[tuple[int, int, int]] = self.legend.colours

    def split(self, name: str) -> Split:
        """List the tiles of a split, after a look at the size of every image and mask."""
        images, masks = (_by_stem(self.path / name / kind) for kind in ("images", "masks"))
        for stem, path in images.items():
            if stem not in masks:
                raise DataError(f"{path}: no mask {stem}.* in {self.path / name / 'masks'}")
        for stem, path in masks.items():
            if stem not in images:
                raise DataError(f"{path}: no image {stem}.* in {self.path / name / 'images'}")
        overlap = self.legend.overlap if name == "train" else 0.0
        tiles, window = list[Tile](), self.legend.window
        for number, (stem, path) in enumerate(images.items()):
            width, height = _size(path)
            if (width, height) != _size(masks[stem]):
                found = "×".join(map(str, _size(masks[stem])))
                raise DataError(f"{masks[stem]}: {found} pixels, but its image has {width}×{height}")
            if min(width, height) < window:
                raise DataError(f"{path}: {width}×{height} pixels, smaller than the window of {window}")
            corners = [(x, y) for y in starts(height, window, overlap) for x in starts(width, window, overlap)]
            tiles += [Tile(number, x, y) for x, y in corners]
        return TileSplit(list(images.values()), list(masks.values()), tiles, self.legend, self.path)


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin that cover a length evenly, each in the next one by the share `overlap` or more."""
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def _by_stem(folder: Path) -> Mapping[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected images and masks of the same names")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no images in it")
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        twice = next(path for path in paths if found[path.stem] != path)
        raise DataError(f"{twice}: {found[twice.stem].name} has the same name but for the suffix")
    return found


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except BROKEN as error:
        raise DataError(f"{path}: not a readable image ({' '.join(str(error).split())})") from None
