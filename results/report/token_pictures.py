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
        grids: for each step (rows, columns) of the patches it chose from: those of its stage.
        dense_answer: what the dense model answers: the name of a class, or how much of it is right.
        pruned_answer: the same of the pruned model.
        panels: pictures to show beside it, (H, W, 3) uint8 each, with what they are.

    Raises:
        ValueError: the parts do not fit one another.
    """

    image: npt.NDArray[np.uint8]
    label: str
    schedule: PruningSchedule
    kept: Sequence[Sequence[int]]
    grids: Sequence[tuple[int, int]]
    dense_answer: str
    pruned_answer: str
    panels: Sequence[tuple[str, npt.NDArray[np.uint8]]] = ()

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"image: expected (H, W, 3) uint8, found {self.image.shape} {self.image.dtype}")
        for name, parts in (("kept", self.kept), ("grids", self.grids)):
            if len(parts) != len(self.schedule.steps):
                raise ValueError(f"{name}: {len(parts)} lists for {len(self.schedule.steps)} steps")
        for kept, (rows, columns) in zip(self.kept, self.grids, strict=True):
            if any(not 0 <= index < rows * columns for index in kept):
                raise ValueError(f"kept: an index outside the grid of {rows * columns} patches")


@dataclass(frozen=True)
class Tile:
    """One small picture of a page: where in the model it stands, and a PNG as a `data:` address."""

    caption: str
    description: str
    source: str


def tiles(picture: TokenPicture) -> list[Tile]:
    """Return the image as it is, once for each step with the dropped patches veiled, then what goes beside it."""
    height, width = picture.image.shape[:2]
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    pixels = np.asarray(Image.fromarray(picture.image).resize(size, resampling), dtype=np.float32)
    veiled = pixels * (1 - _VEIL_SHARE) + np.array(_VEIL, dtype=np.float32) * _VEIL_SHARE
    found = [Tile("whole", f"{picture.label}: the whole image", _png(pixels))]
    for step, kept, (rows, columns) in zip(picture.schedule.steps, picture.kept, picture.grids, strict=True):
        mask = np.zeros(rows * columns, dtype=bool)
        mask[list(kept)] = True
        down = np.arange(size[1]) * rows // size[1]  # the row of patches that each row of pixels lies in
        across = np.arange(size[0]) * columns // size[0]
        shown = mask.reshape(rows, columns)[down[:, None], across[None]]
        text = f"{picture.label}: after block {step.after} {len(kept)} of {rows * columns} patches are left"
        caption = f"after {step.after}: {len(kept)} of {rows * columns}"
        found.append(Tile(caption, text, _png(np.where(shown[..., None], pixels, veiled))))
    for caption, panel in picture.panels:
        small = np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST), dtype=np.float32)
        found.append(Tile(caption, f"{picture.label}: {caption}", _png(small)))
    return found


def _png(pixels: npt.NDArray[np.float32]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
