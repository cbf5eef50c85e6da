"""Images with the tokens that a schedule dropped, as small PNGs inside a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from spaces import PruningSchedule

TILE = 168  # pixels across, about; twice what the page shows, for dense screens
_VEIL = (126, 136, 146)  # what dropped patches fade into: neither black nor white nor either theme's paper
_VEIL_SHARE = 0.86


@dataclass(frozen=True)
class TokenPicture:
    """An image and the patch tokens that it keeps after each step of a schedule.

    Attributes:
        image: as the model sees it but not normalised, (H, W, 3) uint8.
        label: name of its class.
        schedule: the schedule.
        kept: for each step in order the raster indices of the kept patches.
        grid: (rows, columns) of patches.
        dense_answer: name of the class that the dense model gives.
        pruned_answer: name of the class that the pruned model gives.

    Raises:
        ValueError: the parts do not fit one another.
    """

    image: npt.NDArray[np.uint8]
    label: str
    schedule: PruningSchedule
    kept: Sequence[Sequence[int]]
    grid: tuple[int, int]
    dense_answer: str
    pruned_answer: str

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"image: expected (H, W, 3) uint8, found {self.image.shape} {self.image.dtype}")
        if len(self.kept) != len(self.schedule.steps):
            raise ValueError(f"kept: {len(self.kept)} lists for {len(self.schedule.steps)} steps")
        patches = self.grid[0] * self.grid[1]
        if any(not 0 <= index < patches for step in self.kept for index in step):
            raise ValueError(f"kept: an index outside the grid of {patches} patches")


@dataclass(frozen=True)
class Tile:
    """One small picture of a page: where in the model it stands, and a PNG as a `data:` address."""

    caption: str
    description: str
    source: str


def tiles(picture: TokenPicture) -> list[Tile]:
    """Return the image as it is, then once for each step with the dropped patches veiled."""
    rows, columns = picture.grid
    cell = max(2, round(TILE / max(rows, columns)))
    size = (columns * cell, rows * cell)
    larger = picture.image.shape[0] > size[1]
    whole = Image.fromarray(picture.image).resize(
        size, Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    )
    pixels = np.asarray(whole, dtype=np.float32)
    patches = rows * columns
    found = [Tile(f"{patches}", f"{picture.label}: the whole image, {patches} patches", _png(pixels))]
    for step, kept in zip(picture.schedule.steps, picture.kept, strict=True):
        mask = np.zeros(patches, dtype=bool)
        mask[list(kept)] = True
        shown = np.kron(mask.reshape(rows, columns), np.ones((cell, cell), dtype=bool))[..., None]
        veiled = pixels * (1 - _VEIL_SHARE) + np.array(_VEIL, dtype=np.float32) * _VEIL_SHARE
        text = f"{picture.label}: after block {step.after} {len(kept)} of {patches} patches are left"
        found.append(Tile(f"after {step.after}: {len(kept)}", text, _png(np.where(shown, pixels, veiled))))
    return found


def _png(pixels: npt.NDArray[np.float32]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
