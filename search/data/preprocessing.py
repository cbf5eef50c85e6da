"""From an image to a model's input: timm's geometry for evaluation, then normalisation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor


class Preprocessing:
    """Turns images into a model's input.

    Args:
        model_cfg: timm's `pretrained_cfg`: mean and std; interpolation, crop_pct and crop_mode if they differ from
            timm's defaults.
        img_size: (H, W) of the input, in pixels.

    Attributes:
        geometry: resizes and crops an image; returns its pixels (3, H, W) uint8.
        resampling: the interpolation, as Pillow names it.
    """

    def __init__(self, model_cfg: Mapping[str, Any], img_size: tuple[int, int]) -> None:
        self.img_size = (int(img_size[0]), int(img_size[1]))
        interpolation = str(model_cfg.get("interpolation", "bicubic"))
        self.resampling = Image.Resampling[interpolation.upper()]
        self.geometry: Callable[[Any], Tensor] = create_transform(
            (3, *self.img_size),
            interpolation=interpolation,
            crop_pct=model_cfg.get("crop_pct"),
            crop_mode=model_cfg.get("crop_mode"),
            normalize=False,
        )
        mean, std = (torch.tensor(model_cfg[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
        self._mean, self._std = mean, std

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return (B, 3, H, W) pixels, uint8 or float in 0..1, as the model's float32 input."""
        scaled = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
        return (scaled - self._mean) / self._std

    def bytes_for(self, images: int) -> int:
        """Return the bytes of this many images' uint8 pixels, (3, H, W) each."""
        return images * 3 * self.img_size[0] * self.img_size[1]
