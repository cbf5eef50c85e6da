"""Images with masks, as tiles: `PATH/{train,val,test}/{images,masks}` and `PATH/classes.json`.

    {"classes": [{"name": "land", "color": "#8429F6"}, {"name": "road", "color": "#6EC1E4"}],
     "ignore": ["#9B9B9B"], "window": 256, "overlap": 0.5}

A mask has the name of its image, apart from the suffix. Either each class has a `color`, and masks are read as
colours (also through a palette), or each class has an `id`, and masks hold ids: as palette indices, in grey or in 16
bits. `ignore` lists the colours or ids of pixels without a class.

Images are cut into windows of `window`×`window` pixels on the fly. Those of train overlap by the share `overlap`,
those of val and test by as little as covers the image. Where these overlap, each pixel counts in the window whose
centre is nearer; in the other it has no class, so that a score counts every pixel once.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from search.data.image_files import decode, is_deep, opened, orientation, stored_range, upright, upright_size
from search.data.source import Augmentation, Colour
from search.data.splits import FileSplit
from search.data.walk import LeftOut, has_suffix, is_readable, leads_to_folder, scan
from spaces.errors import DataError, DataNotFoundError
from spaces.paths import is_folder

NO_CLASS = 255  # value of a mask's pixels without a class, so there are at most 255 classes

DESCRIPTION = "classes.json"
DECODED_LIMIT = 2**28  # bytes of whole images that a split keeps decoded, because its tiles are read in mixed order
# Images from above have no up. A larger rotation would leave too many pixels at the corners without a class.
FROM_ABOVE = Augmentation(shift=0.125, degrees=15.0, zoom=0.1, flip=True)
_MOST_SIDE = 2**16


@dataclass(frozen=True)
class Legend:
    """The meaning of a mask's values, and the size of tiles.

    Attributes:
        names: names of the classes.
        colours: a colour for each class, for showing masks.
        by_colour: whether masks are read as colours; otherwise as ids.
        values: the values that a mask may hold, ascending: colours as 0xRRGGBB, or ids.
        labels: the class of each value; `NO_CLASS` for those to ignore.
        window: side of a tile, in pixels.
        overlap: share of a window that the next one repeats, in train.
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
        """Read a classes.json; DataError if it is missing or wrong."""
        try:
            content = json.loads(path.read_bytes())  # UTF-8, also after a byte order mark, or UTF-16
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; it names the classes and their colours or ids") from None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not readable as JSON ({error})") from None
        try:
            return cls._of(content)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}: {reason}") from None

    @classmethod
    def _of(cls, content: Any) -> "Legend":
        classes, ignored = content["classes"], content.get("ignore", [])
        window, overlap = content.get("window", 256), content.get("overlap", 0.5)
        if not 1 <= len(classes) <= NO_CLASS:
            raise ValueError(f"{len(classes)} classes: expected 1 to {NO_CLASS}")
        if not (type(window) is int and 1 <= window <= _MOST_SIDE):
            raise ValueError(f"window {window!r}: expected pixels, such as 256")
        if not (type(overlap) in (int, float) and 0 <= overlap <= 0.9):
            raise ValueError(f"overlap {overlap!r}: expected a share from 0 to 0.9")
        by_colour = "id" not in classes[0]
        key = "color" if by_colour else "id"
        values = [_value(one[key], by_colour) for one in classes] + [_value(one, by_colour) for one in ignored]
        if len(set(values)) < len(values):
            raise ValueError(f"two classes have the same {key}")
        order = np.argsort(values)
        labels = np.array([*range(len(classes)), *[NO_CLASS] * len(ignored)], dtype=np.uint8)
        colours = [_rgb(one["color"]) if "color" in one else _default_colour(i) for i, one in enumerate(classes)]
        names = [_name(one["name"]) for one in classes]
        return cls(names, colours, by_colour, np.array(values)[order], labels[order], window, float(overlap))

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Return the class of each pixel (H, W) of a mask file; DataError if it is broken or has an unknown value."""
        found = self._values_in(path)
        place = np.searchsorted(self.values, found).clip(max=len(self.values) - 1)
        wrong = self.values[place] != found
        if wrong.any():
            y, x = (int(index[0]) for index in np.nonzero(wrong))
            value = f"colour #{found[y, x]:06X}" if self.by_colour else f"id {found[y, x]}"
            raise DataError(f"{path}: {value} at ({x}, {y}) is no class of {DESCRIPTION}, nor among those to ignore")
        classes: NDArray[np.uint8] = self.labels[place]
        return classes

    def _values_in(self, path: Path) -> NDArray[np.int64]:
        """Return the colours, as 0xRRGGBB, or the ids of an upright mask, (H, W)."""
        with opened(path, str(path)) as mask:
            wide = mask.mode.startswith(("I", "F"))
            if self.by_colour and (wide or is_deep(mask)):
                raise DataError(f"{path}: a mask of 16 bits has no colours; give the classes ids in {DESCRIPTION}")
            if not self.by_colour and mask.mode not in ("P", "L", "1") and not wide:
                raise DataError(f"{path}: a mask of colours ({mask.mode}); give the classes colours in {DESCRIPTION}")
            if not self.by_colour:
                return _as_written(mask, path)
            rgb = np.asarray(upright(mask).convert("RGB"), dtype=np.int64)
            return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def _as_written(mask: Image.Image, path: Path) -> NDArray[np.int64]:
    """Return the values (H, W) of an opened file of one channel, which Pillow stretches to its mode's range.

    Raises:
        DataError: the file holds them inverted, so that it is uncertain what they mean.
    """
    highest, inverted = stored_range(mask)
    if inverted:
        raise DataError(f"{path}: its grey values are stored inverted (0 is white); write its ids as 8-bit PNG")
    found = np.asarray(upright(mask)).astype(np.int64)
    if highest is None:
        return found
    full = 65535 if mask.mode.startswith("I") else 255
    return np.rint(found * highest / full).astype(np.int64)


def _name(given: Any) -> str:
    if not isinstance(given, str | int | float):
        raise ValueError("name: expected a text")
    name = str(given)
    if name.encode(errors="replace").decode() != name:
        raise ValueError(f"name {name!r}: is no text in UTF-8")
    return name


def _value(given: Any, by_colour: bool) -> int:
    if by_colour:
        red, green, blue = _rgb(given)
        return red << 16 | green << 8 | blue
    if type(given) is not int or not 0 <= given < 2**16:
        raise ValueError(f"id {given!r}: expected a whole number")
    return given


def _rgb(colour: Any) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(str(colour))[:3]  # ValueError: unknown color specifier
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"color {colour!r}: expected values from 0 to 255")
    return red, green, blue


def _default_colour(index: int) -> tuple[int, int, int]:
    red, green, blue = ImageColor.getrgb(f"hsl({index * 137 % 360}, 70%, 55%)")[:3]
    return red, green, blue


@dataclass(frozen=True)
class Tile:
    """A window of an image.

    Attributes:
        image: number of the image.
        left, top: the window's upper left corner in pixels.
        counted: (left, top, right, bottom) of its pixels that count, within the window; None if all do.
    """

    image: int
    left: int
    top: int
    counted: tuple[int, int, int, int] | None = None


Decoded = tuple[Image.Image, NDArray[np.uint8]]
"""(image, class of each pixel)"""


class DecodedImages:
    """The most recently used images and masks, up to a limit of memory. Safe to use from several threads.

    Args:
        decode: decodes an image and its mask, by number.
        limit: bytes; the image used last is kept even if it alone exceeds it.
    """

    def __init__(self, decode: Callable[[int], Decoded], limit: int) -> None:
        self._decode, self._limit = decode, limit
        self._kept: OrderedDict[int, Decoded] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of images that are kept."""
        return len(self._kept)

    def __getitem__(self, number: int) -> Decoded:
        """Return an image and its mask; DataError if one is broken."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        pair = self._decode(number)  # without the lock, so that threads decode in parallel
        with self._lock:
            if number not in self._kept:
                self._kept[number] = pair
                self._bytes += _bytes_of(pair)
            while self._bytes > self._limit and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _bytes_of(dropped)
        return pair


def _bytes_of(pair: Decoded) -> int:
    return 4 * pair[1].size  # three of colour and one of the mask


class TileSplit:
    """The tiles of a split.

    Args:
        images, masks: the files, by number.
        tiles: the windows.
        legend: the meaning of the masks.
        root: folder that the names in the digest are relative to.
        notes: what users should know of the split.
        decoded_limit: bytes of whole images to keep decoded.

    Attributes:
        labels: the number of the image of each tile, (N,).
        decoded: the whole images that are kept decoded.
    """

    def __init__(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        tiles: Sequence[Tile],
        legend: Legend,
        root: Path,
        notes: Sequence[str] = (),
        decoded_limit: int = DECODED_LIMIT,
    ) -> None:
        self._images, self._masks, self._tiles, self._legend, self._root = images, masks, tiles, legend, root
        self._notes = notes
        self.labels = np.array([tile.image for tile in tiles], dtype=np.int64)
        self.decoded = DecodedImages(self._decode, decoded_limit)

    def image(self, index: int) -> Image.Image:
        """Return a tile as RGB; DataError names its file if that is broken."""
        return self.decoded[self._tiles[index].image][0].crop(self._box(index))

    def mask(self, index: int) -> Image.Image:
        """Return the class of each pixel of a tile, 8 bits each; DataError names its file if that is broken."""
        left, top, right, bottom = self._box(index)
        found = self.decoded[self._tiles[index].image][1][top:bottom, left:right]
        counted = self._tiles[index].counted
        if counted is not None:
            left, top, right, bottom = counted
            whole, found = found, np.full_like(found, NO_CLASS)
            found[top:bottom, left:right] = whole[top:bottom, left:right]
        return Image.fromarray(found)

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed images and masks as `FileSplit` does, and how they are read."""
        legend = self._legend
        values = [legend.names, legend.by_colour, legend.values.tolist(), legend.labels.tolist(), legend.window]
        digest.update(json.dumps(values).encode())
        digest.update(json.dumps([(tile.image, tile.left, tile.top) for tile in self._tiles]).encode())
        if counted := [tile.counted for tile in self._tiles if tile.counted is not None]:
            digest.update(json.dumps(counted).encode())
        self._files.update(digest)

    def notes(self) -> Sequence[str]:
        """Say which files are left out, and which images are turned."""
        return self._notes

    def first_turned(self) -> str | None:
        """Return the first image or mask with an EXIF orientation."""
        return self._files.first_turned()

    @property
    def _files(self) -> FileSplit:
        return FileSplit(self.labels, [*self._images, *self._masks], self._root)

    def _box(self, index: int) -> tuple[int, int, int, int]:
        tile, window = self._tiles[index], self._legend.window
        return tile.left, tile.top, tile.left + window, tile.top + window

    def _decode(self, number: int) -> Decoded:
        path = self._images[number]
        return decode(path, str(path)), self._legend.decode(self._masks[number])


class TileSource:
    """The data set that the head of this module describes. A split may be missing until it is needed.

    Args:
        path: the folder with `classes.json`.
        decoded_limit: bytes of whole images that each split keeps decoded.
    """

    task = "segmentation"
    declares_order = True
    augmentation = FROM_ABOVE

    def __init__(self, path: Path, decoded_limit: int = DECODED_LIMIT) -> None:
        if not is_folder(path):
            raise DataNotFoundError(f"{path}: no such folder; expected {path}/train/images and {path}/train/masks")
        self.path = path
        self.legend = Legend.read(path / DESCRIPTION)
        self.classes = self.legend.names
        self.colours: Sequence[Colour] = self.legend.colours
        self._decoded_limit = decoded_limit

    def split(self, name: str) -> TileSplit:
        """List the tiles of a split, after comparing the sizes of all images and masks."""
        notes: list[str] = []
        images, masks = (_by_stem(self.path / name / kind, notes) for kind in ("images", "masks"))
        self._check_pairs(name, images, masks)
        overlap, window = self.legend.overlap if name == "train" else 0.0, self.legend.window
        tiles: list[Tile] = []
        turned = 0
        for number, (stem, path) in enumerate(images.items()):
            (width, height), turn = _size(path)
            mask_size, mask_turn = _size(masks[stem])
            if mask_size != (width, height):
                found = "×".join(map(str, mask_size))
                when = " when upright (EXIF orientation)" if max(turn, mask_turn) > 1 else ""
                raise DataError(f"{masks[stem]}: {found} pixels, but its image {path} has {width}×{height}{when}")
            if min(width, height) < window:
                raise DataError(f"{path}: {width}×{height} pixels, smaller than the window of {window}")
            columns, rows = starts(width, window, overlap), starts(height, window, overlap)
            tiles += (
                [Tile(number, x, y) for y in rows for x in columns]
                if name == "train"
                else [
                    Tile(number, x, y, _counted(across, down, window))
                    for y, down in zip(rows, shares(rows, window), strict=True)
                    for x, across in zip(columns, shares(columns, window), strict=True)
                ]
            )
            turned += mask_turn == 1 < turn
        if turned:
            notes.append(
                f"{self.path / name}: {turned} {'image' if turned == 1 else 'images'} turned by EXIF orientation; "
                "masks that have none are taken as drawn on the upright image"
            )
        pairs = list(images.values()), list(masks.values())
        return TileSplit(*pairs, tiles, self.legend, self.path, notes, self._decoded_limit)

    def _check_pairs(self, name: str, images: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
        for kind, ones, others in (("mask", images, masks), ("image", masks, images)):
            for stem, path in ones.items():
                if stem not in others:
                    raise DataError(f"{path}: no {kind} {stem}.* in {self.path / name / f'{kind}s'}")


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin that cover a length evenly and overlap by at least the share `overlap`.

    >>> starts(length=100, window=40, overlap=0.0)
    [0, 30, 60]
    """
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def shares(starts: Sequence[int], window: int) -> list[tuple[int, int]]:
    """Return the part (begin, end) of each window, from its start, that is nearer to its centre than to another's.

    The parts cover what the windows cover, and each place once.

    >>> shares([0, 30, 60], window=40)
    [(0, 35), (5, 35), (5, 40)]

    Args:
        starts: where the windows begin, rising.
        window: their length.
    """
    ends = [(one + window + other) // 2 for one, other in pairwise(starts)]  # halfway through what two share
    begins = [starts[0], *ends]
    return [
        (begin - start, end - start)
        for start, begin, end in zip(starts, begins, [*ends, starts[-1] + window], strict=True)
    ]


def _counted(across: tuple[int, int], down: tuple[int, int], window: int) -> tuple[int, int, int, int] | None:
    box = across[0], down[0], across[1], down[1]
    return None if box == (0, 0, window, window) else box


def _by_stem(folder: Path, notes: list[str]) -> Mapping[str, Path]:
    """Return the images in a folder by name without suffix, and add to the notes what is left out."""
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder; expected images and masks of the same names")
    left_out = LeftOut(folder)
    paths: list[Path] = []
    for entry in scan(folder):
        path = folder / entry.name
        if leads_to_folder(entry):
            left_out.misplaced.append(path)
        elif has_suffix(entry.name) and is_readable(entry):
            paths.append(path)
        else:
            left_out.file(path)
    if not paths:
        raise DataError(f"{folder}: no images in it")
    notes += left_out.notes()
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        twice = next(path for path in paths if found[path.stem] != path)
        raise DataError(f"{twice}: {found[twice.stem].name} has the same name but for the suffix")
    return found


def _size(path: Path) -> tuple[tuple[int, int], int]:
    """Return (width, height) of an image when upright, and its EXIF orientation."""
    with opened(path, str(path)) as image:
        return upright_size(image), orientation(image)
