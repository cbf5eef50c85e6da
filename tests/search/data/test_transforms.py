"""Random transforms of training images."""

import numpy as np
import pytest
import torch

from search.data.preprocessing import Preprocessing
from search.data.source import OBJECTS, Augmentation
from search.data.transforms import draw_transforms, random_crop, transform_images
from tests.search.pictures import noise

CFG = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic", "crop_pct": 1.0}
UNCHANGED = Augmentation(shift=0.0, flip=False)


def drawn(images: int, seed: int = 0) -> torch.Tensor:
    return draw_transforms(images, torch.Generator().manual_seed(seed))


def test_no_augmentation_changes_nothing() -> None:
    images = torch.rand(4, 3, 10, 14)
    assert torch.allclose(
        transform_images(images, UNCHANGED, draw_transforms(4, torch.Generator())), images, atol=1e-5
    )


def test_shifts_are_whole_pixels() -> None:
    image = torch.rand(1, 3, 10, 20).expand(40, -1, -1, -1)
    transformed = transform_images(image, Augmentation(shift=0.1, flip=False), drawn(40))
    padded = torch.nn.functional.pad(image[0], (2, 2, 1, 1))
    windows = [padded[:, y : y + 10, x : x + 20] for y in range(3) for x in range(5)]
    hits = [[i for i, window in enumerate(windows) if torch.allclose(window, m, atol=1e-5)] for m in transformed]
    assert all(len(hit) == 1 for hit in hits)
    assert len({hit[0] for hit in hits}) > 10


def test_flip_mirrors_half_of_them() -> None:
    image = torch.rand(1, 3, 8, 8).expand(60, -1, -1, -1)
    transformed = transform_images(image, Augmentation(shift=0.0, flip=True), drawn(60))
    mirrored = [torch.allclose(m, image[0].flip(2), atol=1e-5) for m in transformed]
    same = [torch.allclose(m, image[0], atol=1e-5) for m in transformed]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 15 < sum(mirrored) < 45


def test_rotation_keeps_the_shape_of_wide_images() -> None:
    # a disc stays a disc; if the rotation ignored the aspect ratio, it would become an ellipse
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")
    disc = ((x**2 + y**2) < 15**2).float().expand(8, 3, 40, 80)
    transformed = transform_images(disc, Augmentation(shift=0.0, degrees=45.0, flip=False), drawn(8, 3))
    assert (transformed - disc).abs().mean() < 0.01


@pytest.mark.parametrize("size", [(50, 40), (400, 3), (3, 400), (1, 1)])
def test_random_crops_of_any_shape_of_image(size: tuple[int, int]) -> None:
    crop = random_crop(noise(0, *size), Preprocessing(CFG, (16, 24)), OBJECTS, np.random.default_rng(0))
    assert (crop.shape, crop.dtype) == ((3, 16, 24), torch.uint8)
