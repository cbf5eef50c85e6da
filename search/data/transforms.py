"""Random transforms of training images: affine transforms of batches, and random crops of single images."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from search.data.preprocessing import Preprocessing
from search.data.source import Augmentation


def draw_transforms(images: int, generator: torch.Generator) -> Tensor:
    """Return five random numbers in 0..1 for each image, (images, 5), as `sampling_grid` takes them."""
    return torch.stack([torch.rand(images, generator=generator) for _ in range(5)], dim=1)


def transform_images(images: Tensor, augmentation: Augmentation, drawn: Tensor) -> Tensor:
    """Rotate, zoom, mirror and shift each image of a batch; pixels from beyond the edges are black.

    Args:
        images: (B, C, H, W) float.
        augmentation: the bounds of the transforms, which are uniform between them.
        drawn: (B, 5) from `draw_transforms`.
    """
    height, width = images.shape[2:]
    grid = sampling_grid((height, width), augmentation, drawn)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sampling_grid(size: tuple[int, int], augmentation: Augmentation, drawn: Tensor) -> Tensor:
    """Return where each pixel of transformed images is sampled from, (B, H, W, 2), as `F.grid_sample` takes it.

    Args:
        size: (H, W) of the images.
        augmentation, drawn: as for `transform_images`.

    >>> grid = sampling_grid((4, 6), Augmentation(), draw_transforms(2, torch.Generator()))
    >>> tuple(grid.shape)
    (2, 4, 6, 2)
    """
    height, width = size
    a = augmentation
    rotation, scale, flip, right, down = drawn.unbind(1)

    def uniform(bound: float, draw: Tensor) -> Tensor:
        return (draw * 2 - 1) * bound

    angle = torch.deg2rad(uniform(a.degrees, rotation))
    zoom = 1 / (1 + uniform(a.zoom, scale))
    mirror = torch.where(flip < 0.5 * a.flip, -1.0, 1.0)
    # The coordinates of grid_sample run from -1 to 1 over a side, so a pixel is 2 / side.
    shift_x = uniform(a.shift * width, right).round() * 2 / width
    shift_y = uniform(a.shift * height, down).round() * 2 / height
    ratio = height / width
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin * ratio, shift_x], dim=1),
            torch.stack([sin / ratio, cos, shift_y], dim=1),
        ],
        dim=1,
    )
    return F.affine_grid(theta, [len(drawn), 1, height, width], align_corners=False)


def random_crop(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation, random: np.random.Generator
) -> Tensor:
    """Return a random crop of an image, resized to the model's input, (3, H, W) uint8.

    The crop has 25 to 100 % of the area and an aspect ratio between 3:4 and 4:3 relative to the input's. If ten draws
    do not fit into the image, it is the largest centred crop of the input's aspect ratio. (torchvision's
    RandomResizedCrop, with another range of areas.)

    Args:
        image: RGB.
        preprocessing: gives the size and the interpolation.
        augmentation: says whether images may be mirrored.
        random: draws the crop.
    """
    height, width = preprocessing.img_size
    for _ in range(10):
        area = image.width * image.height * random.uniform(0.25, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3))) * width / height
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= image.width and 0 < h <= image.height:
            left, top = int(random.integers(image.width - w + 1)), int(random.integers(image.height - h + 1))
            break
    else:
        scale = min(image.width / width, image.height / height)
        w, h = max(1, int(width * scale)), max(1, int(height * scale))
        left, top = (image.width - w) // 2, (image.height - h) // 2
    box = (float(left), float(top), float(left + w), float(top + h))
    part = image.resize((width, height), preprocessing.resampling, box=box)
    if augmentation.flip and random.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)
