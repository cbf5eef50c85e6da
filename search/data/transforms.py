"""Random changes of training images: moves of whole batches on tensors, and random crops of single images."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from search.data.preprocessing import Preprocessing
from search.data.sources import Augmentation


def draw_moves(images: int, generator: torch.Generator) -> Tensor:
    """Return five random numbers in 0..1 an image, (images, 5), for `move_images`."""
    return torch.stack([torch.rand(images, generator=generator) for _ in range(5)], dim=1)


def move_images(images: Tensor, augmentation: Augmentation, moves: Tensor) -> Tensor:
    """Turn, zoom, flip and shift each image of a batch by its own amount; black comes in at the edges.

    Args:
        images: (B, C, H, W) float.
        augmentation: the bounds to draw from, uniformly.
        moves: (B, 5) in 0..1 from `draw_moves`: where between its bounds each amount of an image lies.
    """
    height, width = images.shape[2:]
    grid = moved_grid((height, width), augmentation, moves)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def moved_grid(size: tuple[int, int], augmentation: Augmentation, moves: Tensor) -> Tensor:
    """Return where each pixel of moved images (B, _, H, W) comes from, (B, H, W, 2) as `F.grid_sample` wants it.

    Args:
        size: (H, W).
        augmentation, moves: as for `move_images`.
    """
    height, width = size
    a = augmentation
    turn, grow, flip, right, down = moves.unbind(1)

    def between(bound: float, move: Tensor) -> Tensor:
        return (move * 2 - 1) * bound

    angle = torch.deg2rad(between(a.degrees, turn))
    zoom = 1 / (1 + between(a.zoom, grow))
    mirror = torch.where(flip < 0.5 * a.flip, -1.0, 1.0)
    # grid_sample's coordinates run from -1 to 1 over a side, so a whole pixel is 2/side
    shift_x = between(a.shift * width, right).round() * 2 / width
    shift_y = between(a.shift * height, down).round() * 2 / height
    ratio = height / width
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin * ratio, shift_x], dim=1),
            torch.stack([sin / ratio, cos, shift_y], dim=1),
        ],
        dim=1,
    )
    return F.affine_grid(theta, [len(moves), 1, height, width], align_corners=False)


def random_crop(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation, random: np.random.Generator
) -> Tensor:
    """Return a resized random part of an image, (3, H, W) uint8.

    The part has 25 to 100 % of the area and sides in a ratio of 3:4 to 4:3; where no such part fits in
    ten draws, it is the largest one in the middle.
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
