"""The interface of data sets: a `Source` opens splits, a `Split` gives images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spaces.errors import DataError

Colour = tuple[int, int, int]
"""(red, green, blue) in 0..255"""


@dataclass(frozen=True)
class Augmentation:
    """The range of random transforms of a training image: a shift by whole pixels, rotation, zoom and mirroring.

    Attributes:
        shift: maximum shift, as a share of the side.
        degrees: maximum rotation in either direction.
        zoom: maximum change of scale in either direction, as a share.
        flip: whether images may be mirrored left to right.
    """

    shift: float = 0.125
    degrees: float = 0.0
    zoom: float = 0.0
    flip: bool = True


# A mirrored digit is no digit, but a digit may be slanted or larger.
DIGITS = Augmentation(shift=0.08, degrees=10.0, zoom=0.1, flip=False)
OBJECTS = Augmentation()


class Split(Protocol):
    """The images of a split. Its methods are called from several threads at once."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The label of each image, (N,). In a task without one, images of equal labels are similar."""

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB; DataError if it is broken, naming it."""

    def mask(self, index: int) -> Image.Image:
        """Return an image's mask, the class of each pixel in 8 bits; DataError if it is broken or there are none."""

    def update(self, digest: "hashlib._Hash") -> None:
        """Feed the digest with the content of all images, in order."""

    def notes(self) -> Sequence[str]:
        """Return what users should know about the split, such as files that were left out; a line each."""

    def first_turned(self) -> str | None:
        """Return the name of an image that its EXIF orientation turns; None if there is none."""


class Source(Protocol):
    """A data set, which opens its splits on demand.

    It is opened in the driver and again in every worker. It raises a DataError if a file is missing or broken, naming
    the file. It never downloads anything, except for `hf:NAME`, whose users expect it.
    """

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""

    @property
    def declares_order(self) -> bool:
        """Whether the data set itself numbers its classes; otherwise their names are sorted."""

    @property
    def augmentation(self) -> Augmentation:
        """The transforms of a training image that keep its class."""

    @property
    def task(self) -> str:
        """Name of the task, a key of `search.data.tasks.TASKS`."""

    @property
    def colours(self) -> Sequence[Colour]:
        """A colour for each class, if the task's answers are shown as pictures; otherwise empty."""

    def split(self, name: str) -> Split:
        """Open `train`, `val` or `test`; DataError if it is missing or empty."""


class ClassificationSource:
    """Base of sources that have a class for each image."""

    task = "classification"
    colours: Sequence[Colour] = ()
    declares_order = True


class ClassificationSplit:
    """Base of splits that have a class for each image."""

    def mask(self, index: int) -> Image.Image:
        """Raise a DataError: there are no masks."""
        raise DataError(f"image {index} has no mask: the data set is for classification")

    def notes(self) -> Sequence[str]:
        """Return nothing."""
        return ()

    def first_turned(self) -> str | None:
        """Return None: the images have no EXIF orientation."""
        return None
