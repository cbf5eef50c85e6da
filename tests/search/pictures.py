"""Small folders of images for the tests of data and training."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, height: int = 12, width: int = 12) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_folder(
    root: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    each: int = 6,
    split_names: tuple[str, ...] = ("train", "val"),
) -> Path:
    for s, split in enumerate(split_names):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                noise(1000 * s + 100 * label + i).save(root / split / name / f"{i}.png")
    return root


def write_brightness(root: Path) -> Path:
    """Two classes that differ in brightness, with 24 train images each."""
    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for name, level in (("dark", 60), ("light", 150)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(level - 50, level + 50, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root
