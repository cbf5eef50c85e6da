"""Images with the patches that a schedule drops, as small PNGs inside a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from spaces import PruningSchedule

THUMBNAIL = 168  # pixels of the longer side: twice what the page shows, for high-density screens
_FADE = (126, 136, 146)  # the grey of dropped patches; visible on the light and the dark theme
_FADE_SHARE = 0.86


@dataclass(frozen=True)
class TokenPicture:
    """An image, and the patch tokens that are kept after each step of a schedule.

    Attributes:
        image: the image as the model sees it, before normalisation, (H, W, 3) uint8.
        label: name of its class.
        schedule: the schedule.
        kept: for each step, the raster indices of the kept patches.
        grids: for each step, (rows, columns) of the patch grid of its stage.
        dense_answer: the dense model's prediction: the name of a class, or the share that is correct.
        pruned_answer: the same for the pruned model.
        panels: further pictures, each a caption and an image (H, W, 3) uint8.

    Raises:
        ValueError: the image has another shape or type, or `kept` and `grids` do not match the schedule.
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
class Thumbnail:
    """A small picture on a page: its caption, its alternative text, and a PNG as a `data:` URL."""

    caption: str
    description: str
    source: str


def thumbnails(picture: TokenPicture) -> list[Thumbnail]:
    """Return the whole image, then for each step the image with dropped patches faded, then the panels."""
    height, width = picture.image.shape[:2]
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    pixels = np.asarray(Image.fromarray(picture.image).resize(size, resampling), dtype=np.float32)
    faded = pixels * (1 - _FADE_SHARE) + np.array(_FADE, dtype=np.float32) * _FADE_SHARE
    found = [Thumbnail("whole", f"{picture.label}: the whole image", _png(pixels))]
    for step, kept, (rows, columns) in zip(picture.schedule.steps, picture.kept, picture.grids, strict=True):
        mask = np.zeros(rows * columns, dtype=bool)
        mask[list(kept)] = True
        down = np.arange(size[1]) * rows // size[1]  # the row of patches of each row of pixels
        across = np.arange(size[0]) * columns // size[0]
        shown = mask.reshape(rows, columns)[down[:, None], across[None]]
        text = f"{picture.label}: after block {step.after} {len(kept)} of {rows * columns} patches are left"
        caption = f"after {step.after}: {len(kept)} of {rows * columns}"
        found.append(Thumbnail(caption, text, _png(np.where(shown[..., None], pixels, faded))))
    for caption, panel in picture.panels:
        small = np.asarray(Image.fromarray(panel).resize(size, Image.Resampling.NEAREST), dtype=np.float32)
        found.append(Thumbnail(caption, f"{picture.label}: {caption}", _png(small)))
    return found


def _png(pixels: npt.NDArray[np.float32]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
