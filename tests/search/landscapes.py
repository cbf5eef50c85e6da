"""A small data set for segmentation: two kinds of ground, one of them brighter, in wavy regions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WATER, LAND, NOTHING = (226, 169, 41), (132, 41, 246), (155, 155, 155)
CLASSES = [{"name": "water", "color": "#E2A929"}, {"name": "land", "color": "#8429F6"}]


def description(**changes: Any) -> dict[str, Any]:
    """Return what `classes.json` holds."""
    return {"classes": CLASSES, "ignore": ["#9B9B9B"], "window": 32, "overlap": 0.5} | changes


def landscape(seed: int, width: int = 48, height: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (H, W, 3) uint8 and where land is (H, W) bool."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 12
    land = np.sin(x + random.uniform(0, 6)) + np.cos(y + random.uniform(0, 6)) > 0
    image = random.integers(0, 60, (height, width, 3)) + np.where(land[..., None], 150, 40)
    return image.astype(np.uint8), land


def write_landscapes(root: Path, train: int = 3, val: int = 2) -> Path:
    """Write the data set, masks as colours with a corner without a class; return its folder."""
    (root / "classes.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(description()))
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, land = landscape(number + 100 * (split == "val"))
            mask = np.where(land[..., None], LAND, WATER).astype(np.uint8)
            mask[:3, :4] = NOTHING
            Image.fromarray(image).save(root / split / "images" / f"part_{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"part_{number}.png")
    return root
