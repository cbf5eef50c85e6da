"""Splits: the labels and images of a part of a data set, held in an array, in files or in a table."""

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.data.source import ClassificationSplit
from spaces.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
DIGEST_LIMIT = 2**30  # bytes; beyond it, a digest does not read the files
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ArraySplit(ClassificationSplit):
    """Images in an array: (N, H, W) or (N, H, W, 3) uint8."""

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
class FileSplit(ClassificationSplit):
    """Image files below the folder `root`."""

    labels: NDArray[np.int64]
    paths: list[Path]
    root: Path

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB; DataError names the file if it is broken."""
        return decode(self.paths[index], str(self.paths[index]))

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed each file's name, size and bytes; without the bytes if all files together exceed `DIGEST_LIMIT`."""
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
class TableSplit(ClassificationSplit):
    """Rows of a Hugging Face data set, whose column `column` holds encoded images."""

    labels: NDArray[np.int64]
    table: Any
    column: str
    name: str

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB; DataError names the row if it is broken."""
        return decode(self._content(index), f"{self.name}, row {index}")

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed the bytes of all images; only the size of the table if it exceeds `DIGEST_LIMIT`."""
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
    """Decode an image file as RGB.

    Args:
        content: the file, or its bytes.
        where: names it in errors.

    Raises:
        DataError: it is broken, or has more than 8 bits per channel.
    """
    try:
        with Image.open(content) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip values above 255
                raise DataError(f"{where}: has more than 8 bits a channel; convert it to 8 bits")
            return image.convert("RGB")
    except BROKEN as error:
        reason = " ".join(str(error).split()) if not isinstance(content, io.BytesIO) else type(error).__name__
        raise DataError(f"{where}: not a readable image ({reason}); replace or remove it") from None
