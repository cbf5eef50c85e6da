"""PlainMamba (Yang et al., arXiv:2403.17695): no stages, no cls token, four scans in zigzag over the grid.

Parameter names are the authors' (ChenhongyiYang/PlainMamba). Their published weights depend on two quirks, which are
kept: the bias of Δ is added twice, and only the input u is in zigzag order, while Δ, B and C stay in raster order. So
at step t a direction reads u of the t-th token on its path, and Δ, B and C of the t-th token in raster order.

The same holds after pruning, for the kept tokens: at step j a direction reads u of the j-th kept token on its path,
and Δ, B and C of the j-th kept token in raster order. The Δ of pruned tokens are missing from the raster sequence,
and alignment restores them there: every direction equals the recurrence over all raster positions in which a pruned
one has the Δ of the policy and no input. What a direction adds to B depends on the visited token: on the move by
which the path over the whole grid enters it.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from spaces import Stage, TokenLayout
from ssm_models.base import PrunableModel
from ssm_models.families.depthwise_gradient import depthwise_conv
from ssm_models.families.layers import MambaConfig, a_log, drop_rates, dt_projection, resize_positions
from ssm_models.importance import Signals
from ssm_models.precision import precise
from ssm_models.registry import ModelInfo, register
from ssm_models.scan import channel_last_scan
from ssm_models.scan_paths import FORWARD
from ssm_models.token_view import TokenView

START, RIGHT, LEFT, UP, DOWN = range(5)  # the move into a step; indexes the rows of `direction_Bs`


@dataclass(frozen=True)
class PlainMambaConfig(MambaConfig):
    """Sizes of a PlainMamba; defaults are the authors'. The patch's side is even.

    Attributes:
        conv: side of the depthwise convolution before the scan.
        stem: channels of the convolutions before the patches.
        stem_convs: 3×3 convolutions among them.
        dwconv_blocks: blocks, from 0, that end with a depthwise convolution.
    """

    conv: int = 7
    stem: int = 64
    stem_convs: int = 2
    dwconv_blocks: tuple[int, ...] = ()


@lru_cache
def zigzag(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the four zigzag paths over a grid: rows from the top left, their reverse, columns, their reverse.

    Returns:
        tokens: (4, L) the raster index visited at each step.
        moves: (4, L) the move into each step.
    """
    raster = np.arange(height * width).reshape(height, width)
    opposite = np.array([START, LEFT, RIGHT, DOWN, UP])
    tokens, moves = [], []
    for grid, along, back, turn in ((raster, RIGHT, LEFT, DOWN), (raster.T, DOWN, UP, RIGHT)):
        path, move = grid.copy(), np.full(grid.shape, along)
        path[1::2], move[1::2] = path[1::2, ::-1].copy(), back
        move[:, 0] = turn
        move[0, 0] = START
        tokens += [path.ravel(), path.ravel()[::-1]]
        moves += [move.ravel(), np.append(START, opposite[move.ravel()[:0:-1]])]
    return np.stack(tokens), np.stack(moves)


def zigzag_of_scanned(view: TokenView, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the orders of the scanned tokens and the moves into their steps, both (b or 1, 4, S)."""
    tokens, moves = (torch.from_numpy(x).to(view.seeds.device) for x in zigzag(height, width))
    if view.sets.scanned_positions is None:
        return tokens[None], moves[None]
    steps = tokens.argsort(1)[:, view.sets.scanned_positions].transpose(0, 1)  # (b, 4, S)
    steps, orders = steps.sort(2)
    return orders, moves.expand(steps.shape[0], -1, -1).gather(2, steps)


class PlainMambaMixer(nn.Module):
    """A 7×7 convolution and a selective scan in four directions that share Δ, B and C."""

    def __init__(self, config: PlainMambaConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        inner, states, rank = config.inner, config.states, config.rank
        self.states, self.rank, self.grid = states, rank, grid
        self.in_proj = nn.Linear(config.dim, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, config.conv, padding=config.conv // 2, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = dt_projection(rank, inner)
        self.A_log = a_log(inner, states)
        self.D = nn.Parameter(torch.ones(inner))
        self.direction_Bs = nn.Parameter(trunc_normal_(torch.zeros(5, states), std=0.02))
        self.out_proj = nn.Linear(inner, config.dim)

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """Mix travelling tokens (b, T, D), normalised; return the change of the kept ones (b, K, D), and signals."""
        (w_x, w_z), (b_x, b_z) = self.in_proj.weight.chunk(2), self.in_proj.bias.chunk(2)
        u = view.to_grid(F.linear(x, w_x, b_x), *self.grid)
        u = F.silu(view.from_grid(depthwise_conv(u, self.conv2d.weight, self.conv2d.bias)))
        z = F.linear(view.kept(x), w_z, b_z)
        dt, B, C = torch.split(self.x_proj(u), [self.rank, self.states, self.states], -1)
        bias = self.dt_proj.bias
        delta = F.linear(dt, self.dt_proj.weight)
        orders, moves = view.remember("zigzag", lambda: zigzag_of_scanned(view, *self.grid))
        y = channel_last_scan(
            u,
            delta,
            -torch.exp(precise(self.A_log)),
            B,
            C,
            D=precise(self.D),
            z=z,
            delta_bias=2 * precise(bias),
            delta_softplus=True,
            gap=view.gap(delta, 2 * bias, 2 * bias, 0, FORWARD),
            emit=view.sets.kept_idx,
            orders=orders,
            B_orders=precise(self.direction_Bs)[moves],
        )
        change: Tensor = self.out_proj(y)
        if not signal:
            return change, None

        def deltas() -> tuple[Tensor, ...]:
            return (F.softplus(view.kept_of_scanned(delta) + 2 * bias),)

        return change, Signals(y, deltas, view.all_positions(), view.seeds)


class PlainMambaBlock(nn.Module):
    """LayerNorm, mixer and residual; in some blocks a depthwise convolution that replaces the output."""

    def __init__(self, config: PlainMambaConfig, grid: tuple[int, int], drop_path: float, dwconv: bool) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(config.dim, eps=1e-5)
        self.mamba = PlainMambaMixer(config, grid)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.dw: nn.Sequential | None = None
        if dwconv:
            conv = nn.Conv2d(config.dim, config.dim, 3, padding=1, groups=config.dim, bias=False)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(config.dim), nn.GELU())

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`."""
        change, signals = self.mamba(self.norm(x), view, signal)
        x = view.update(x, self.drop_path(change))
        if self.dw is not None:
            x = view.overwrite(x, self.dw(view.to_grid(x, *self.grid)))
        return x, signals


class PatchEmbed(nn.Module):
    """Convolutions at half the resolution, then patches of these; the grid is padded at its end to whole patches."""

    def __init__(self, config: PlainMambaConfig, in_chans: int) -> None:
        super().__init__()
        width = config.stem
        self.side = config.patch // 2
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        layers = [
            (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(config.stem_convs)
        ]
        self.convs = nn.Sequential(*(layer for group in layers for layer in group))
        self.projection = nn.Conv2d(width, config.dim, self.side, self.side)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (b, c, H, W) into tokens (b, L, D)."""
        x = self.convs(self.stem(images))
        x = F.pad(x, (0, -x.shape[3] % self.side, 0, -x.shape[2] % self.side))
        tokens: Tensor = self.projection(x).flatten(2).transpose(1, 2)
        return tokens


class Backbone(nn.Module):
    """Everything before the head, under the prefix of the authors' keys."""

    def __init__(self, config: PlainMambaConfig, grid: tuple[int, int], in_chans: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], config.dim))
        self.patch_embed = PatchEmbed(config, in_chans)
        rates = drop_rates(config.drop_path, config.depth)
        self.layers = nn.ModuleList(
            PlainMambaBlock(config, grid, rate, index in config.dwconv_blocks) for index, rate in enumerate(rates)
        )
        self.ln1 = nn.LayerNorm(config.dim, eps=1e-6)


def patch_grid(config: PlainMambaConfig, img_size: tuple[int, int]) -> tuple[int, int]:
    """Return the patches (down, across) of an image of (height, width) pixels."""
    height, width = (math.ceil(math.ceil(side / 2) / (config.patch // 2)) for side in img_size)
    return height, width


class PlainMamba(PrunableModel):
    """PlainMamba for classification: the mean of the tokens, then a linear head."""

    class_layers = ("head.fc",)
    directions = published_directions = (FORWARD,)  # of the one sequence of Δ that the four scans share

    def __init__(
        self,
        config: PlainMambaConfig,
        name: str,
        num_classes: int,
        img_size: tuple[int, int],
        *,
        in_chans: int = 3,
    ) -> None:
        height, width = patch_grid(config, img_size)
        super().__init__(TokenLayout(name, img_size, (Stage(config.depth, height, width),)), num_classes)
        self.config = config
        self.backbone = Backbone(config, (height, width), in_chans)
        self.head = nn.Sequential(OrderedDict(fc=nn.Linear(config.dim, num_classes)))
        self._initialise()

    def _initialise(self) -> None:
        trunc_normal_(self.backbone.pos_embed, std=0.02)
        for block in self.blocks:
            for linear in (block.mamba.in_proj, block.mamba.out_proj, block.mamba.x_proj):
                trunc_normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        head = self.head.get_submodule("fc")
        assert isinstance(head, nn.Linear)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    @property
    def blocks(self) -> Sequence[Any]:
        """See `PrunableModel`."""
        return list(self.backbone.layers)

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """See `PrunableModel`."""
        return (self.config.inner,)

    def embed(self, images: Tensor) -> Tensor:
        """See `PrunableModel`."""
        tokens: Tensor = self.backbone.patch_embed(images) + self.backbone.pos_embed
        return tokens

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """Return the scanned tokens: the kept ones, and frozen ones with their last features."""
        tokens: Tensor = self.backbone.ln1(view.scanned(x))
        return tokens

    @classmethod
    def settings_of(cls, config: PlainMambaConfig, state: dict[str, Tensor]) -> dict[str, int]:
        """See `PrunableModel`."""
        return {"num_classes": state["head.fc.weight"].shape[0]}

    @classmethod
    def patches_of(cls, state: dict[str, Tensor]) -> int | None:
        """See `PrunableModel`."""
        positions = state.get("backbone.pos_embed")
        return positions.shape[1] if positions is not None and positions.dim() == 3 else None

    def adapt(self, state: dict[str, Tensor], img_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Resize the position embeddings of another image size (bicubic)."""
        old = state.get("backbone.pos_embed")
        if old is None or old.dim() != 3:
            return state
        stage = self.layout.stages[0]
        grid = None if img_size is None else patch_grid(self.config, img_size)
        return {**state, "backbone.pos_embed": resize_positions(old, grid, (stage.height, stage.width))}


for _name, _config, _about in (
    ("plain_mamba_l1", PlainMambaConfig(192, 24, stem_convs=1, dwconv_blocks=(0,), drop_path=0.2), "PlainMamba-L1"),
    ("plain_mamba_l2", PlainMambaConfig(384, 24, drop_path=0.2), "PlainMamba-L2"),
    ("plain_mamba_l3", PlainMambaConfig(448, 36, drop_path=0.4), "PlainMamba-L3"),
):
    _weights = f"hf:ChenhongyiYang/PlainMamba/{_name[-2:]}.pth"
    register(ModelInfo(_name, PlainMamba, _config, description=f"{_about} of the authors", authors=_weights))

_NANO = PlainMambaConfig(64, 12, patch=4, stem=32, stem_convs=1)
register(
    ModelInfo(
        "plain_mamba_nano",
        PlainMamba,
        _NANO,
        img_size=28,
        num_classes=10,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=1.0,
        description="12 blocks of width 64 for small images; ships weights for the embedded digits",
    )
)
register(
    ModelInfo(
        "plain_mamba_nano_patch8",
        PlainMamba,
        replace(_NANO, patch=8),
        img_size=64,
        num_classes=10,
        crop_pct=1.0,
        description="plain_mamba_nano with patches of 8 pixels, for images of 64",
    )
)
