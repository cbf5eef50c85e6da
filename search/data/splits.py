"""Splits: the labels and images of a part of a data set, held in an array, in files or in a table."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.data.image_files import decode, opened, orientation
from search.data.source import ClassificationSplit, Split
from search.data.walk import LeftOut
from spaces.errors import DataError

DIGEST_LIMIT = 2**30  # bytes; beyond it, a digest does not read the files


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
    """Image files below the folder `root`; `left_out` says which files there are not among them."""

    labels: NDArray[np.int64]
    paths: list[Path]
    root: Path
    left_out: LeftOut | None = None

    def image(self, index: int) -> Image.Image:
        """Return one image as RGB; DataError names the file if it is broken."""
        return decode(self.paths[index], str(self.paths[index]))

    def notes(self) -> Sequence[str]:
        """Say which files are left out."""
        return self.left_out.notes() if self.left_out else ()

    def first_turned(self) -> str | None:
        """Return the first file with an EXIF orientation."""
        return next((str(path) for path in self.paths if is_turned(path, str(path))), None)

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
        return decode(self._content(index), self._where(index))

    def first_turned(self) -> str | None:
        """Return the first row whose image has an EXIF orientation."""
        rows = map(self._where, range(len(self.labels)))
        return next((row for index, row in enumerate(rows) if is_turned(self._content(index), row)), None)

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed the bytes of all images; only the size of the table if it exceeds `DIGEST_LIMIT`."""
        if self.table.data.nbytes > DIGEST_LIMIT:
            digest.update(f"{len(self.labels)}\0{self.table.data.nbytes}".encode())
            return
        for index in range(len(self.labels)):
            digest.update(self._content(index).getvalue())

    def _where(self, index: int) -> str:
        return f"{self.name}, row {index}"

    def _content(self, index: int) -> io.BytesIO:
        cell = self.table[index][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self._where(index)}: no image in column {self.column!r}")
        try:
            return io.BytesIO(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes())
        except OSError as error:
            raise DataError(f"{cell['path']}: cannot be read: {error.strerror or error}") from None


@dataclass(frozen=True)
class RelabelledSplit:
    """A split with other labels, for classes in another order."""

    split: Split
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """See `Split`."""
        return self.split.image(index)

    def mask(self, index: int) -> Image.Image:
        """See `Split`."""
        return self.split.mask(index)

    def update(self, digest: "hashlib._Hash") -> None:
        """See `Split`."""
        self.split.update(digest)

    def notes(self) -> Sequence[str]:
        """See `Split`."""
        return self.split.notes()

    def first_turned(self) -> str | None:
        """See `Split`."""
        return self.split.first_turned()


def is_turned(content: Path | io.BytesIO, where: str) -> bool:
    """Return whether `decode` turns an image, where an earlier version did not. Pillow always turned TIFF.

    Raises:
        DataError: the image is broken.
    """
    with opened(content, where) as image:
        return image.format != "TIFF" and orientation(image) != 1
