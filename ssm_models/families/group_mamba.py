"""GroupMamba (Shaker et al., arXiv:2407.13772): four groups of channels, each with its own scan direction.

Parameter names are the authors' (Amshaker/GroupMamba), so that their checkpoints load as they are. Their weights
depend on two quirks, which are kept: the output of the scans is multiplied by their input, and one LayerNorm serves
before and after.

The groups scan the grid along its rows, down its columns, and both ways backwards. Scores are computed from the
outputs of the four groups side by side, each normalised and gated, before their projection. The weights of the
channels are computed from the mean of the scanned tokens.

Published are 4.5, 7.0 and 14 GFLOPs; here they are 4.67, 7.23 and 14.10: 3.7 %, 3.3 % and 0.7 % more. The authors do
not state their convention. The input projections of the scans account for 0.17, 0.25 and 0.52: without them the
counts are 4.50, 6.98 and 13.58. All of it runs, so all of it is counted.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssm_models.base import PrunableModel
from ssm_models.families.depthwise import at_kept, at_seen
from ssm_models.families.directional_scan import ScanWeights, directional_scan
from ssm_models.families.layers import MLP, a_log, drop_rates, dt_projection, init_linear
from ssm_models.families.staged import as_grid, staged_layout
from ssm_models.importance import Signals
from ssm_models.registry import ModelInfo, register
from ssm_models.scan_paths import CROSS
from ssm_models.token_sets import TokenSets
from ssm_models.token_view import TokenView


@dataclass(frozen=True)
class GroupMambaConfig:
    """Sizes of a GroupMamba; defaults are the authors'.

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
    """A selective scan in one direction, its norm and gate, and the projections and the convolution around it."""

    def __init__(self, dim: int, states: int, sequence: int) -> None:
        super().__init__()
        self.sequence, self.direction, rank = sequence, CROSS[sequence], math.ceil(dim / 16)
        dt = dt_projection(rank, dim)
        x_proj = nn.Linear(dim, rank + 2 * states, bias=False)
        self.x_proj_weight = nn.Parameter(x_proj.weight.detach()[None])
        self.dt_projs_weight = nn.Parameter(dt.weight.detach()[None])
        self.dt_projs_bias = nn.Parameter(dt.bias.detach()[None])
        self.A_logs = a_log(dim, states)
        self.Ds = nn.Parameter(torch.ones(dim))
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, u: Tensor, z: Tensor, view: TokenView) -> tuple[Tensor, Callable[[], Tensor]]:
        """Scan u (b, S, d), and gate the output by z (b, K, d).

        Returns:
            The output (b, K, d) before its projection, and a function that returns Δ (b, K, d).
        """
        weights = ScanWeights(
            self.x_proj_weight[0], self.dt_projs_weight[0], self.dt_projs_bias[0], self.A_logs, self.Ds
        )
        arranged = view.scan_path(self.direction).arrange(u)
        y, delta = directional_scan(arranged, view, self.sequence, self.direction, weights)
        return self.out_norm(y) * F.silu(z), delta


class GroupMambaLayer(nn.Module):
    """Four directed scans, each of a quarter of the channels, times their input and a weight for each channel."""

    def __init__(self, dim: int, config: GroupMambaConfig) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.fc1 = nn.Linear(dim, dim // config.reduction)
        self.fc2 = nn.Linear(dim // config.reduction, dim)
        self.norm = nn.LayerNorm(dim)
        self.mamba_g1, self.mamba_g2, self.mamba_g3, self.mamba_g4 = (
            DirectedScan(dim // len(CROSS), config.states, sequence) for sequence in range(len(CROSS))
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """Mix travelling tokens (b, T, D); return the change of the kept ones (b, K, D), and signals."""
        x = self.norm(x)
        weights = torch.sigmoid(self.fc2(F.relu(self.fc1(view.scanned(x).mean(1)))))
        groups, kept = (self.mamba_g1, self.mamba_g2, self.mamba_g3, self.mamba_g4), view.kept(x)
        w_x, w_z = zip(*(group.in_proj.weight.chunk(2) for group in groups), strict=True)
        convs = [group.conv2d for group in groups]  # depthwise, so that those of all groups are one
        weight, bias = (torch.cat([getattr(conv, name) for conv in convs]) for name in ("weight", "bias"))
        u = F.silu(at_seen(_by_group(x, w_x), weight, bias, view))
        parts = zip(groups, u.chunk(len(groups), -1), _by_group(kept, w_z).chunk(len(groups), -1), strict=True)
        scans = [group(u, z, view) for group, u, z in parts]
        mixed = torch.cat([group.out_proj(y) for group, (y, _) in zip(groups, scans, strict=True)], -1)
        change: Tensor = self.proj(self.norm(mixed * self.skip_scale * kept * weights[:, None]))
        if not signal:
            return change, None
        y = torch.cat([y for y, _ in scans], -1)
        return change, Signals(y, lambda: tuple(delta() for _, delta in scans), view.all_positions(), view.seeds)


def _by_group(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Apply to each group of channels of x (b, L, D) its own linear map."""
    parts = zip(x.chunk(len(weights), -1), weights, strict=True)
    return torch.cat([F.linear(part, weight) for part, weight in parts], -1)


class ConvMLP(nn.Module):
    """Two linear layers, and between them a depthwise convolution over the grid and GELU."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.dwconv = nn.Sequential(
            OrderedDict(dwconv=nn.Conv2d(ratio * dim, ratio * dim, 3, padding=1, groups=ratio * dim))
        )
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor, view: TokenView) -> Tensor:
        """Return the change (b, K, D) of the kept tokens among the travelling ones x (b, T, D)."""
        conv = self.dwconv.get_submodule("dwconv")
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        y: Tensor = self.fc2(F.gelu(at_kept(self.fc1(x), conv.weight, conv.bias, view)))
        return y


class GroupMambaBlock(nn.Module):
    """Layer and MLP, each added to the residual; the layer has its own norm."""

    def __init__(self, dim: int, ratio: int, config: GroupMambaConfig, drop: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GroupMambaLayer(dim, config)
        self.mlp = ConvMLP(dim, ratio)
        self.drop_path = DropPath(drop) if drop else nn.Identity()

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`."""
        change, signals = self.attn(x, view, signal)
        x = view.update(x, self.drop_path(change))
        return view.update(x, self.drop_path(self.mlp(self.norm2(x), view))), signals


class ClassBlock(nn.Module):
    """The block that the mean of the tokens goes through, as a grid of one token."""

    def __init__(self, dim: int, config: GroupMambaConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GroupMambaLayer(dim, config)
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

    reductions = ("prune",)
    class_layers = ("head", "dist_head")
    directions = published_directions = CROSS

    def __init__(
        self, config: GroupMambaConfig, name: str, num_classes: int, img_size: tuple[int, int], *, in_chans: int = 3
    ) -> None:
        super().__init__(staged_layout(name, img_size, config.depths, config.patch), num_classes)
        self.config = config
        rates = iter(drop_rates(config.drop_path, sum(config.depths)))
        inputs = config.stem
        for stage, (depth, dim, ratio) in enumerate(zip(config.depths, config.dims, config.mlp, strict=True), 1):
            convs = stem(in_chans, config.stem, config.patch // 2) if stage == 1 else None
            self.add_module(f"patch_embed{stage}", PatchEmbed(inputs, dim, convs))
            blocks = [GroupMambaBlock(dim, ratio, config, next(rates)) for _ in range(depth)]
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(dim, eps=1e-6))
            inputs = dim
        self.post_network = nn.ModuleList([ClassBlock(dim, config)])
        self.head = nn.Linear(dim, num_classes)
        self.dist_head = nn.Linear(dim, num_classes)
        init_linear(self)

    @property
    def blocks(self) -> Sequence[Any]:
        """See `PrunableModel`."""
        stages = range(1, len(self.config.depths) + 1)
        return [block for stage in stages for block in self.get_submodule(f"block{stage}").children()]

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """See `PrunableModel`."""
        return (self.config.dims[self.layout.stage_of(index + 1)] // len(CROSS),) * len(CROSS)

    def embed(self, images: Tensor) -> Tensor:
        """See `PrunableModel`."""
        tokens: Tensor = self.get_submodule("patch_embed1")(images)
        return tokens

    def downsample(self, stage: int, x: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """See `PrunableModel`."""
        here = self.layout.stages[stage]
        normed: Tensor = self.get_submodule(f"norm{stage + 1}")(x)
        tokens: Tensor = self.get_submodule(f"patch_embed{stage + 2}")(as_grid(normed, (here.height, here.width)))
        return tokens

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """See `PrunableModel`; the norm comes after the pooling."""
        return x

    def pool(self, tokens: Tensor) -> Tensor:
        """Return what the mean of all tokens becomes."""
        cls, seeds = tokens.mean(1, keepdim=True), torch.zeros(tokens.shape[0], device=tokens.device).long()
        one = TokenView(TokenSets(1), seeds, self.schedule.method, grid=(1, 1))
        for block in self.post_network:
            cls = block(cls, one)
        features: Tensor = self.get_submodule(f"norm{len(self.config.depths)}")(cls[:, 0])
        return features

    @classmethod
    def settings_of(cls, config: GroupMambaConfig, state: dict[str, Tensor]) -> dict[str, int]:
        """See `PrunableModel`; no shape depends on the size of the images."""
        return {"num_classes": state["head.weight"].shape[0]}


_SIZES = {
    "tiny": GroupMambaConfig(32, (64, 128, 348, 448), (3, 4, 9, 3)),
    "small": GroupMambaConfig(64, (64, 128, 348, 512), (3, 4, 16, 3)),
    "base": GroupMambaConfig(64, (96, 192, 424, 512), (3, 6, 21, 3)),
}
for _name, _config in _SIZES.items():
    _weights = f"hf:Abdelrahman-shaker/GroupMamba-{_name.capitalize()}"
    _about = f"GroupMamba {_name} of the authors"
    register(ModelInfo(f"group_mamba_{_name}", GroupMamba, _config, description=_about, authors=_weights))

register(
    ModelInfo(
        "group_mamba_nano",
        GroupMamba,
        GroupMambaConfig(16, (32, 64, 128), (2, 6, 4), mlp=(4, 4, 4), patch=2, reduction=4, drop_path=0.0),
        img_size=32,
        num_classes=10,
        crop_pct=1.0,
        description="12 blocks in three stages, widths 32 to 128, for small images",
    )
)
