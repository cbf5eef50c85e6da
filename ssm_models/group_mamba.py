"""GroupMamba (Shaker et al., arXiv:2407.13772): four groups of channels, each scanned in its own direction, in stages.

Parameter names are the authors' (Amshaker/GroupMamba), so that their checkpoints load as they are, and so are the quirks
that their weights depend on: what the scans give is multiplied by their input, and one LayerNorm serves before and after.

The groups go through the grid along its rows, down its columns, and both ways back. The output of the state-space model,
from which the scores are computed, is that of the four groups side by side, each normalised and gated, before its
projection. The weights of the channels come from the mean of the tokens that the state sees.

Published are 4.5, 7.0 and 14 GFLOPs.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from spaces import Stage, TokenLayout
from ssm_models.base import PrunableModel
from ssm_models.importance import Signals
from ssm_models.layers import a_log, dt_projection, precise
from ssm_models.pruning import TokenView, take
from ssm_models.registry import ModelInfo, register
from ssm_models.scan import channel_last_scan

GROUPS = 4


@dataclass(frozen=True)
class GroupMambaConfig:
    """Sizes of a GroupMamba; the authors' where a default stands.

    Attributes:
        stem: channels of the convolutions before the patches.
        dims: width of each stage, a multiple of 4.
        depths: blocks of each stage.
        mlp: width of the hidden layer of each stage's MLP, as a multiple of the stage's.
        patch: pixels of a patch's side in the first stage, 2 or 4.
        states: of each channel of the state-space model.
        reduction: by which the layer that weighs channels is narrower than the stage.
        drop_path: highest rate of dropping a block's change in training.
    """

    stem: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp: tuple[int, ...] = (8, 8, 4, 4)
    patch: int = 4
    states: int = 1
    reduction: int = 16
    drop_path: float = 0.05


class DirectedScan(nn.Module):
    """A 3×3 convolution and a selective scan in one direction: SS2D with one of its four ways."""

    def __init__(self, dim: int, states: int, columns: bool, reverse: bool) -> None:
        super().__init__()
        self.dim, self.states, self.rank = dim, states, math.ceil(dim / 16)
        self.columns, self.reverse = columns, reverse
        dt = dt_projection(self.rank, dim)
        x_proj = nn.Linear(dim, self.rank + 2 * states, bias=False)
        self.x_proj_weight = nn.Parameter(x_proj.weight.detach()[None])
        self.dt_projs_weight = nn.Parameter(dt.weight.detach()[None])
        self.dt_projs_bias = nn.Parameter(dt.bias.detach()[None])
        self.A_logs = a_log(dim, states)
        self.Ds = nn.Parameter(torch.ones(dim))
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, view: TokenView, grid: tuple[int, int], sequence: int) -> tuple[Tensor, Tensor]:
        """Return the gated output (b, K, d) of tokens that travel, and Δ of the kept before bias and softplus."""
        w_x, w_z = self.in_proj.weight.chunk(2)
        z = F.silu(F.linear(view.kept(x), w_z))
        u = F.silu(view.from_grid(self.conv2d(view.to_grid(F.linear(x, w_x), *grid))))
        return self.out_norm(self._scan(u)) * z, u

    def _scan(self, u):
        H = W = math.isqrt(u.shape[1])
        if self.columns:
            u = u.unflatten(1, (H, W)).transpose(1, 2).flatten(1, 2)
        dt, B, C = F.linear(u, self.x_proj_weight[0]).split([self.rank, self.states, self.states], -1)
        delta = F.linear(dt, self.dt_projs_weight[0])
        y = channel_last_scan(u, delta, -torch.exp(precise(self.A_logs)), B, C, precise(self.Ds), None, precise(self.dt_projs_bias[0]), True, reverse=self.reverse)
        if self.columns:
            y = y.unflatten(1, (W, H)).transpose(1, 2).flatten(1, 2)
        return y


class GroupMambaLayer(nn.Module):
    """Four directed scans, each of a quarter of the channels, times their input and a weight for each channel."""

    def __init__(self, dim: int, config: GroupMambaConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.fc1 = nn.Linear(dim, dim // config.reduction)
        self.fc2 = nn.Linear(dim // config.reduction, dim)
        self.norm = nn.LayerNorm(dim)
        for index in range(GROUPS):
            scan = DirectedScan(dim // GROUPS, config.states, columns=index % 2 == 1, reverse=index >= 2)
            self.add_module(f"mamba_g{index + 1}", scan)
        self.proj = nn.Linear(dim, dim)

    @property
    def scans(self) -> list[Any]:
        """The four groups' scans."""
        return [self.get_submodule(f"mamba_g{index + 1}") for index in range(GROUPS)]

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """Mix tokens that travel; return the change of the kept ones (b, K, D) and, on demand, signals."""
        x = self.norm(x)
        weights = torch.sigmoid(self.fc2(F.relu(self.fc1(view.visible(x).mean(1)))))
        parts = [
            scan(part, view, self.grid, sequence)
            for sequence, (scan, part) in enumerate(zip(self.scans, x.chunk(GROUPS, -1), strict=True))
        ]
        mixed = torch.cat([scan.out_proj(y) for scan, (y, _) in zip(self.scans, parts, strict=True)], -1)
        change: Tensor = self.proj(self.norm(mixed * self.skip_scale * view.kept(x) * weights[:, None]))
        return change, None


class ConvMLP(nn.Module):
    """Two linear layers, and between them a depthwise convolution over the grid and GELU."""

    def __init__(self, dim: int, ratio: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.dwconv = nn.Sequential(
            OrderedDict(dwconv=nn.Conv2d(ratio * dim, ratio * dim, 3, padding=1, groups=ratio * dim))
        )
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor, view: TokenView) -> Tensor:
        """Return the change (b, K, D) of the kept of those that travel, x (b, T, D)."""
        seen = view.from_grid(self.dwconv(view.to_grid(self.fc1(x), *self.grid)))
        y: Tensor = self.fc2(F.gelu(seen if view.emit is None else take(seen, view.emit)))
        return y


class GroupMambaBlock(nn.Module):
    """Layer and MLP, each added to the residual; the layer has its own norm."""

    def __init__(self, dim: int, ratio: int, config: GroupMambaConfig, grid: tuple[int, int], drop: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GroupMambaLayer(dim, config, grid)
        self.mlp = ConvMLP(dim, ratio, grid)
        self.drop_path = DropPath(drop) if drop else nn.Identity()

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`."""
        change, signals = self.attn(x, view, signal)
        x = view.update(x, self.drop_path(change))
        return view.update(x, self.drop_path(self.mlp(self.norm2(x), view))), signals


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, L, D) of x (b, L, D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class ClassBlock(nn.Module):
    """The block that the mean of the tokens goes through, as a grid of one token."""

    def __init__(self, dim: int, config: GroupMambaConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GroupMambaLayer(dim, config, (1, 1))
        self.mlp = MLP(dim, config.mlp[-1])

    def forward(self, x: Tensor, view: TokenView) -> Tensor:
        """Return (b, 1, D) of x (b, 1, D)."""
        x = x + self.norm1(self.attn(x, view, False)[0])
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchEmbed(nn.Module):
    """A convolution of stride 2 and a norm; in the first stage with convolutions before it."""

    def __init__(self, inputs: int, dim: int, convs: nn.Sequential | None = None) -> None:
        super().__init__()
        if convs is not None:
            self.conv = convs
        self.proj = nn.Conv2d(inputs, dim, 3, 2, 1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, grid: Tensor) -> Tensor:
        """Turn a grid or images (b, c, H, W) into tokens (b, L, D)."""
        if hasattr(self, "conv"):
            grid = self.conv(grid)
        tokens: Tensor = self.norm(self.proj(grid).flatten(2).transpose(1, 2))
        return tokens


def stem(inputs: int, width: int, stride: int) -> nn.Sequential:
    """Return the convolutions before the patches."""
    layers: list[nn.Module] = []
    for side, step in ((7, stride), (3, 1), (3, 1)):
        layers += [nn.Conv2d(inputs, width, side, step, side // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


class GroupMamba(PrunableModel):
    """GroupMamba for classification: the mean of two heads on what the mean of the tokens becomes."""

    directions = published_directions = (False, False, True, True)

    def __init__(
        self, config: GroupMambaConfig, name: str, num_classes: int, img_size: tuple[int, int], *, in_chans: int = 3
    ) -> None:
        height, width = (math.ceil(side / config.patch) for side in img_size)
        stages = []
        for depth in config.depths:
            stages.append(Stage(depth, height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        super().__init__(TokenLayout(name, img_size, tuple(stages)), num_classes)
        self.config = config
        rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())
        inputs = config.stem
        for index, (stage, dim, ratio) in enumerate(zip(stages, config.dims, config.mlp, strict=True), 1):
            convs = stem(in_chans, config.stem, config.patch // 2) if index == 1 else None
            self.add_module(f"patch_embed{index}", PatchEmbed(inputs, dim, convs))
            grid = (stage.height, stage.width)
            blocks = [GroupMambaBlock(dim, ratio, config, grid, next(rates)) for _ in range(stage.blocks)]
            self.add_module(f"block{index}", nn.ModuleList(blocks))
            self.add_module(f"norm{index}", nn.LayerNorm(dim, eps=1e-6))
            inputs = dim
        self.post_network = nn.ModuleList([ClassBlock(dim, config)])
        self.head = nn.Linear(dim, num_classes)
        self.dist_head = nn.Linear(dim, num_classes)
