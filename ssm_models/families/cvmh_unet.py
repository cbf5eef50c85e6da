"""CVMH-UNet (Cao et al., arXiv:2410.05624): a UNet of blocks with four scans and a local branch.

The authors published no code. From the paper come the widths and depths, the four one-way scans of CS2D, the formulas
of CVSSBlock, the fusion (`grid_fusion.MFMS`) at every level, and the extra skip around pairs of blocks. These choices
were made here:

- F_g = CA(CS(F)), where CS is the block of VMamba's first release with its residual and 16 states, and scans CS2D.
- F_l = SA(Conv3×3(F)) with a depthwise convolution and a linear layer: a dense 3 × 3 would cost four times the count
  that the paper states.
- CA and SA are those of CBAM (arXiv:1807.06521): CA = sigmoid(MLP(mean) + MLP(max)) over the tokens, with a hidden
  layer of a sixteenth of the channels; SA = sigmoid(Conv7×7) over the mean and the maximum of the channels.
- F_u = F + Linear(LN(DWConv3×3(F_g + F_l))); F_out = F_u + Linear(GELU(DWConv3×3(h) + DWConv5×5(h))), h = Linear(F_u)
  of a quarter of the channels, which the count of the paper allows.
- Patches are merged as in VMamba's first release and expanded as in VM-UNet, whose last layer is used too.

A stage of the layout is a stage of the encoder or of the decoder; all of them prune. The skip of a level is the input
grid of its encoder stage. It is whole whatever is pruned, as is the grid that a decoder stage passes to the fusion.

Depthwise convolutions cover the whole grid even when few tokens are kept: they are a few hundredths of a block's
FLOPs, and gathering the neighbours would take more time than the dropped tokens save.

With pruning, CA is computed over the travelling tokens, with the feature of a frozen token as its F_g. In the
convolved sum F_g + F_l a frozen token has its feature, in the maps of SA a zero. The skip around a pair is added for
all tokens, also those that the pair did not compute: it costs nothing and keeps the scale of all tokens alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from spaces import Stage, TokenLayout
from spaces.schedule import IMPORTANCE
from ssm_models.base import PrunableModel
from ssm_models.families.depthwise import at_kept
from ssm_models.families.grid_fusion import MFMS, PatchExpanding
from ssm_models.families.layers import drop_rates, init_linear
from ssm_models.families.staged import as_grid, as_tokens, halved
from ssm_models.families.vmamba import SS2D, PatchMerging, VMambaConfig, patch_embedding
from ssm_models.gather import take_if
from ssm_models.importance import Signals
from ssm_models.registry import ModelInfo, register
from ssm_models.scan_paths import Direction
from ssm_models.token_view import TokenView

# CS2D: every line once, one way. Rows from the top; columns from the right; antidiagonals from the bottom right, each
# from its top right; diagonals from the top right, each from its top left.
CS2D = (
    Direction(),
    Direction(path="columns from the right"),
    Direction(path="antidiagonals"),
    Direction(path="diagonals"),
)


@dataclass(frozen=True)
class CVMHConfig(VMambaConfig):
    """Sizes of a CVMH-UNet; `depths` are the encoder's.

    Attributes:
        decoder: blocks of each decoder stage, the one on the smallest grid first.
    """

    expand: int = 2
    states: int = 16
    mlp: int = 0
    v0: bool = True
    decoder: tuple[int, ...] = ()

    def level(self, stage: int) -> int:
        """How often the grid was halved for a stage, encoder stages counted before decoder stages."""
        levels = len(self.depths)
        return stage if stage < levels else 2 * levels - 1 - stage


class ChannelAttention(nn.Module):
    """CBAM's attention over channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(4, dim // 16)  # of two units, both may be dead
        self.layers = nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return weights (b, 1, D) from tokens (b, T, D)."""
        mean, largest = x.mean(1, keepdim=True), x.amax(1, keepdim=True)
        return torch.sigmoid(self.layers(mean) + self.layers(largest))


class LocalBranch(nn.Module):
    """A convolution over the grid, weighed place by place by CBAM's attention over places."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.mix = nn.Linear(dim, dim)
        self.attention = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor, view: TokenView) -> Tensor:
        """Turn the travelling tokens (b, T, D) into values of the kept ones (b, K, D)."""
        local = self.mix(at_kept(x, self.conv.weight, self.conv.bias, view, everywhere=True))
        maps = torch.stack([local.mean(2), local.amax(2)], 2)
        travelling_maps = view.update(x.new_zeros(*x.shape[:2], 2), maps)
        weights = as_tokens(torch.sigmoid(self.attention(view.to_grid(travelling_maps, *view.grid))))
        result: Tensor = local * take_if(weights, view.sets.kept_positions)
        return result


class EFFN(nn.Module):
    """Narrow layers around two depthwise convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(1, dim // 4)
        self.narrow, self.widen = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv3 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.conv5 = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)

    def forward(self, x: Tensor, view: TokenView) -> Tensor:
        """Turn the travelling tokens (b, T, D) into the change of the kept ones (b, K, D)."""
        hidden = self.narrow(x)
        # The sum of the two convolutions is one of 5 × 5, so one bias is enough.
        weight = self.conv5.weight + F.pad(self.conv3.weight, (1, 1, 1, 1))
        change: Tensor = self.widen(F.gelu(at_kept(hidden, weight, self.conv5.bias, view, everywhere=True)))
        return change


class CVSSBlock(nn.Module):
    """A global branch, a local branch, their fusion and a feed-forward part; see the head of this module.

    Args:
        config, dim: sizes.
        place: in a pair, 0 or 1; None outside of one. Behind the first block of a pair its input travels beside the
            features, for the skip that the second one adds.
        drop_path: rate of dropping a change.
    """

    def __init__(self, config: CVMHConfig, dim: int, place: int | None, drop_path: float) -> None:
        super().__init__()
        self.place = place
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(config, dim, CS2D, everywhere=True)
        self.channel_attention = ChannelAttention(dim)
        self.local = LocalBranch(dim)
        self.fuse = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.fuse_norm = nn.LayerNorm(dim)
        self.fuse_mix = nn.Linear(dim, dim)
        self.ffn = EFFN(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`; x is (b, T, 2 D) between the blocks of a pair, their input behind the features."""
        x, skip = x.chunk(2, -1) if self.place == 1 else (x, x)
        change, signals = self.op(self.norm(x), view, signal)
        scanned = view.update(x, change)
        both = view.kept(scanned) * self.channel_attention(scanned) + self.local(x, view)
        fused = at_kept(view.renew(x, both), self.fuse.weight, self.fuse.bias, view, everywhere=True)
        x = view.update(x, self.drop_path(self.fuse_mix(self.fuse_norm(fused))))
        x = view.update(x, self.drop_path(self.ffn(x, view)))
        if self.place == 0:
            x = torch.cat([x, skip], -1)
        elif self.place == 1:
            x = x + skip
        return x, signals

    def pass_by(self, left: Tensor) -> Tensor:
        """Return the features of tokens that the block does not compute, in the layout of those it does."""
        if self.place == 0:
            return torch.cat([left, left], -1)
        if self.place == 1:
            features, skip = left.chunk(2, -1)
            return features + skip
        return left


class CVMHUNet(PrunableModel):
    """CVMH-UNet for segmentation. Merging is not offered, for the reason of `StagedModel`."""

    task = "segmentation"
    reductions = ("prune",)
    importances = IMPORTANCE
    directions = published_directions = CS2D

    def __init__(
        self, config: CVMHConfig, name: str, num_classes: int, img_size: tuple[int, int], *, in_chans: int = 3
    ) -> None:
        patch, levels = config.patch, len(config.depths)
        if min(img_size) < patch:
            raise ValueError(f"{name}: images of {img_size} pixels are smaller than a patch of {patch}")
        grids = halved((img_size[0] // patch, img_size[1] // patch), levels - 1)
        depths = (*config.depths, *config.decoder)
        stages = tuple(Stage(depth, *grids[config.level(stage)]) for stage, depth in enumerate(depths))
        super().__init__(TokenLayout(name, img_size, stages), num_classes)
        self.config = config
        self.patch_embed = patch_embedding(config, in_chans)
        rates = iter(drop_rates(config.drop_path, sum(depths)))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            dim, paired = config.width(config.level(stage)), depth - depth % 2
            places = [index % 2 if index < paired else None for index in range(depth)]
            self.stages.append(nn.ModuleList([CVSSBlock(config, dim, place, next(rates)) for place in places]))
        widths = [config.width(level) for level in range(levels)]
        self.merging = nn.ModuleList([PatchMerging(width) for width in widths[:-1]])
        self.fusion = nn.ModuleList([MFMS(width, grid) for width, grid in zip(widths, grids, strict=True)])
        self.expanding = nn.ModuleList([PatchExpanding(width, width // 2, 2) for width in widths[1:]])
        self.last = PatchExpanding(widths[0], widths[0] // 4, patch)
        self.head = nn.Conv2d(widths[0] // 4, num_classes, 1)
        init_linear(self)

    @property
    def blocks(self) -> Sequence[Any]:
        """See `PrunableModel`."""
        return [block for stage in self.stages for block in stage.children()]

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """See `PrunableModel`."""
        level = self.config.level(self.layout.stage_of(index + 1))
        return (self.config.expand * self.config.width(level),) * len(CS2D)

    def embed(self, images: Tensor) -> Tensor:
        """See `PrunableModel`."""
        return as_tokens(self.patch_embed(images))

    def pass_by(self, index: int, left: Tensor) -> Tensor:
        """See `PrunableModel`."""
        passed: Tensor = self.blocks[index].pass_by(left)
        return passed

    def set_aside(self, stage: int, x: Tensor, aside: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `PrunableModel`: the skips, which a decoder stage uses up when it ends."""
        levels = len(self.config.depths)
        if stage < levels:
            return (*aside, x)
        return aside if stage == levels else aside[:-1]

    def fused(self, stage: int, x: Tensor, skip: Tensor) -> Tensor:
        """Return the grid (b, D, H, W) of a decoder stage's tokens and its level's skip, (b, L, D) each."""
        here, level = self.layout.stages[stage], self.config.level(stage)
        grids = (as_grid(tokens, (here.height, here.width)) for tokens in (skip, x))
        grid: Tensor = self.fusion[level](*grids)
        return grid

    def downsample(self, stage: int, x: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """See `PrunableModel`; from a decoder stage on the grids grow."""
        levels, here = len(self.config.depths), self.layout.stages[stage]
        if stage + 1 < levels:
            return as_tokens(self.merging[stage](as_grid(x, (here.height, here.width))))
        if stage + 1 == levels:
            return x
        after = self.layout.stages[stage + 1]
        expanding = self.expanding[self.config.level(stage) - 1]
        return as_tokens(expanding(self.fused(stage, x, aside[-1]), (after.height, after.width)))

    def classify(self, x: Tensor, view: TokenView) -> Tensor:
        """Give each pixel its logits, (b, classes, H, W); those beyond the last patch have their neighbours'."""
        grid = self.fused(len(self.stages) - 1, x, view.aside[-1])
        logits: Tensor = self.head(self.last(grid, self.img_size))
        (height, width), (there, across) = self.img_size, logits.shape[2:]
        if (there, across) != (height, width):
            logits = F.pad(logits, (0, width - across, 0, height - there), mode="replicate")
        return logits

    @classmethod
    def settings_of(cls, config: CVMHConfig, state: dict[str, Tensor]) -> dict[str, int]:
        """See `PrunableModel`; no shape depends on the size of the images."""
        return {"num_classes": state["head.weight"].shape[0]}


register(
    ModelInfo(
        "cvmh_unet",
        CVMHUNet,
        CVMHConfig(96, (2, 2, 2, 2), decoder=(2, 2, 2, 1), drop_path=0.2),
        img_size=256,
        num_classes=6,
        crop_pct=1.0,
        description="CVMH-UNet of the paper, for segmentation",
    )
)
register(
    ModelInfo(
        "cvmh_unet_nano",
        CVMHUNet,
        CVMHConfig(32, (2, 6, 2), decoder=(2, 2, 1), states=4),
        img_size=64,
        num_classes=6,
        crop_pct=1.0,
        description="15 blocks on three grids, widths 32 to 128, for segmentation of small tiles",
    )
)
