"""Families with stages: grids that halve from stage to stage, and stages of blocks with a downsampling layer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spaces import Stage, TokenLayout
from ssm_models.base import PrunableModel


def halved(grid: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """Return a grid's (height, width) and those after halving it so many times, odd sides rounded up."""
    grids = [grid]
    for _ in range(times):
        height, width = grids[-1]
        grids.append(((height + 1) // 2, (width + 1) // 2))
    return grids


def staged_layout(
    name: str, img_size: tuple[int, int], depths: Sequence[int], patch: int, *, padded: bool = True
) -> TokenLayout:
    """Return the layout of a model whose stages have so many blocks each, on grids that halve.

    Args:
        name: of the model.
        img_size: (height, width) in pixels.
        depths: blocks of each stage.
        patch: pixels of a token's side in the first stage.
        padded: whether pixels beyond the last whole patch make up another one; otherwise they are cropped.

    Raises:
        ValueError: the images are smaller than a patch.
    """
    height, width = (-(-side // patch) if padded else side // patch for side in img_size)
    if min(height, width) < 1:
        raise ValueError(f"{name}: images of {img_size} pixels are smaller than a patch of {patch}")
    grids = halved((height, width), len(depths) - 1)
    return TokenLayout(name, img_size, tuple(Stage(d, *grid) for d, grid in zip(depths, grids, strict=True)))


def as_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens (b, H · W, C) as a grid (b, C, H, W)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, *grid)


def as_tokens(grid: Tensor) -> Tensor:
    """Return a grid (b, C, H, W) as tokens (b, H · W, C)."""
    return grid.flatten(2).transpose(1, 2)


class StagedModel(PrunableModel):
    """A family whose stages are `layers`, each with `blocks` and a `downsample` from its grid to the next one.

    Merging is not supported: a token that was averaged into another one cannot return at the end of the stage.

    Attributes:
        patch_embed: turns images into the first grid (b, D, H, W).
        layers: the stages; the last one's `downsample` is never called.
    """

    reductions = ("prune",)
    patch_embed: nn.Module
    layers: nn.ModuleList

    @property
    def blocks(self) -> Sequence[Any]:
        """See `PrunableModel`."""
        return [block for layer in self.layers for block in layer.get_submodule("blocks").children()]

    def embed(self, images: Tensor) -> Tensor:
        """See `PrunableModel`."""
        return as_tokens(self.patch_embed(images))

    def downsample(self, stage: int, x: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """See `PrunableModel`."""
        here = self.layout.stages[stage]
        return as_tokens(self.layers[stage].get_submodule("downsample")(as_grid(x, (here.height, here.width))))

    @classmethod
    def settings_of(cls, config: Any, state: dict[str, Tensor]) -> dict[str, int]:
        """See `PrunableModel`; no shape depends on the size of the images."""
        head = "classifier.head.weight" if "classifier.head.weight" in state else "head.weight"
        return {"num_classes": state[head].shape[0]}
