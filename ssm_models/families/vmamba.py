"""VMamba (Liu et al., arXiv:2401.10166): four stages of blocks whose scans cross the grid along rows and columns.

Parameter names are the authors' (MzeroMiko/VMamba), so that their checkpoints load as they are; names of their first
release, and linear layers stored as 1×1 convolutions, are accepted too. `v0` is that first release: with a gate,
sixteen states, no MLP, and patches merged between the stages.

Each of the four scans has its own Δ, B and C, computed from the token it visits, and its own gaps where tokens are
pruned. Pruned tokens return at the end of their stage, the last one included: the head reads the mean of all tokens.
Tokens are scored by the sum of the scans, before its norm and gate.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from spaces.schedule import IMPORTANCE
from ssm_models.families.depthwise import at_seen
from ssm_models.families.directional_scan import ScanWeights, directional_scan
from ssm_models.families.layers import a_log, drop_rates, dt_projection, init_linear
from ssm_models.families.staged import StagedModel, staged_layout
from ssm_models.importance import Signals
from ssm_models.registry import ModelInfo, register
from ssm_models.scan_paths import CROSS, Direction
from ssm_models.token_view import TokenView


@dataclass(frozen=True)
class VMambaConfig:
    """Sizes of a VMamba.

    Attributes:
        dim: width of the first stage; each further one is twice as wide.
        depths: blocks of each stage.
        patch: pixels of a token's side in the first stage, 2 or 4.
        expand: channels of the state-space model, as a multiple of the stage's width.
        states: of each channel of the state-space model.
        mlp: width of the MLP as a multiple of the stage's; 0 is none.
        v0: the authors' first release; see the head of this module.
        drop_path: highest rate of dropping a block's change in training.
    """

    dim: int
    depths: tuple[int, ...]
    patch: int = 4
    expand: int = 1
    states: int = 1
    mlp: int = 4
    v0: bool = False
    drop_path: float = 0.0

    def width(self, stage: int) -> int:
        """Width of the features in a stage."""
        return self.dim << stage


class GridNorm(nn.LayerNorm):
    """LayerNorm over the channels of a grid (b, D, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each place for itself."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SS2D(nn.Module):
    """A depthwise convolution and a selective scan in several directions, each with its own Δ, B and C."""

    def __init__(
        self,
        config: VMambaConfig,
        dim: int,
        directions: tuple[Direction, ...] = CROSS,
        everywhere: bool = False,
    ) -> None:
        super().__init__()
        self.directions, self.everywhere = directions, everywhere  # the latter as of `at_seen`
        inner, self.states, self.rank = config.expand * dim, config.states, math.ceil(dim / 16)
        self.inner, self.gated = inner, config.v0
        self.in_proj = nn.Linear(dim, 2 * inner if self.gated else inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=config.v0)
        paths = [dt_projection(self.rank, inner) for _ in directions]
        bound = inner**-0.5
        width = self.rank + 2 * self.states
        self.x_proj_weight = nn.Parameter(torch.empty(len(directions), width, inner).uniform_(-bound, bound))
        self.dt_projs_weight = nn.Parameter(torch.stack([path.weight.detach() for path in paths]))
        self.dt_projs_bias = nn.Parameter(torch.stack([path.bias.detach() for path in paths]))
        self.A_logs = a_log(len(directions) * inner, self.states)
        self.Ds = nn.Parameter(torch.ones(len(directions) * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """Mix travelling tokens (b, T, D), normalised; return the change of the kept ones (b, K, D), and signals."""
        u = F.linear(x, self.in_proj.weight[: self.inner])
        u = F.silu(at_seen(u, self.conv2d.weight, self.conv2d.bias, view, self.everywhere))
        paths = {direction.path: direction for direction in self.directions}
        arranged = {path: view.scan_path(direction).arrange(u) for path, direction in paths.items()}
        scans = [
            directional_scan(arranged[direction.path], view, k, direction, weights)
            for k, (direction, weights) in enumerate(zip(self.directions, self._weights(), strict=True))
        ]
        y = sum((y for y, _ in scans[1:]), scans[0][0])
        mixed = self.out_norm(y)
        if self.gated:
            mixed = mixed * F.silu(F.linear(view.kept(x), self.in_proj.weight[self.inner :]))
        change: Tensor = self.out_proj(mixed)
        if not signal:
            return change, None
        outputs = tuple(y for y, _ in scans)
        return change, Signals(
            y, lambda: tuple(delta() for _, delta in scans), view.all_positions(), view.seeds, outputs
        )

    def _weights(self) -> Iterator[ScanWeights]:
        """Give the weights of each direction."""
        count = len(self.directions)
        A_logs, Ds = self.A_logs.chunk(count), self.Ds.chunk(count)
        for k in range(count):
            yield ScanWeights(self.x_proj_weight[k], self.dt_projs_weight[k], self.dt_projs_bias[k], A_logs[k], Ds[k])


class VMambaBlock(nn.Module):
    """LayerNorm, mixer and residual; then the same with an MLP, of the kept tokens alone."""

    def __init__(self, config: VMambaConfig, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(config, dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.has_mlp = config.mlp > 0
        if self.has_mlp:
            self.norm2 = nn.LayerNorm(dim)
            layers = {
                "fc1": nn.Linear(dim, config.mlp * dim),
                "act": nn.GELU(),
                "fc2": nn.Linear(config.mlp * dim, dim),
            }
            self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`."""
        change, signals = self.op(self.norm(x), view, signal)
        x = view.update(x, self.drop_path(change))
        if self.has_mlp:
            x = view.update(x, self.drop_path(self.mlp(self.norm2(view.kept(x)))))
        return x, signals


class PatchMerging(nn.Module):
    """Four neighbours as one token of twice the width (the downsampling of the first release)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        """Turn a grid (b, D, H, W), padded to even sides, into (b, 2 D, H / 2, W / 2)."""
        grid = F.pad(grid, (0, grid.shape[3] % 2, 0, grid.shape[2] % 2)).permute(0, 2, 3, 1)
        corners = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged.permute(0, 3, 1, 2)


def patch_embedding(config: VMambaConfig, in_chans: int) -> nn.Sequential:
    """Return what turns images into the first grid."""
    dim, patch = config.dim, config.patch
    if config.v0:
        return nn.Sequential(nn.Conv2d(in_chans, dim, patch, patch), nn.Identity(), GridNorm(dim))
    # The authors' permutations between the layers count in their names.
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, 2, 1), nn.Identity(), GridNorm(dim // 2), nn.Identity(), nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, patch // 2, 1), nn.Identity(), GridNorm(dim),
    )  # fmt: skip


def passage(config: VMambaConfig, stage: int) -> nn.Module:
    """Return the downsampling after a stage; the identity after the last."""
    if stage + 1 == len(config.depths):
        return nn.Identity()
    dim = config.width(stage)
    if config.v0:
        return PatchMerging(dim)
    return nn.Sequential(nn.Identity(), nn.Conv2d(dim, 2 * dim, 3, 2, 1), nn.Identity(), GridNorm(2 * dim))


class VMamba(StagedModel):
    """VMamba for classification: the mean of all tokens of the last grid, then a linear head."""

    class_layers: tuple[str, ...] = ("classifier.head",)
    importances = IMPORTANCE
    directions = published_directions = CROSS

    def __init__(
        self,
        config: VMambaConfig,
        name: str,
        num_classes: int,
        img_size: tuple[int, int],
        *,
        in_chans: int = 3,
    ) -> None:
        super().__init__(
            staged_layout(name, img_size, config.depths, config.patch, padded=not config.v0), num_classes
        )
        self.config = config
        self.patch_embed = patch_embedding(config, in_chans)
        rates = iter(drop_rates(config.drop_path, sum(config.depths)))
        self.layers = nn.ModuleList()
        for stage, blocks in enumerate(config.depths):
            built = [VMambaBlock(config, config.width(stage), next(rates)) for _ in range(blocks)]
            parts = OrderedDict(blocks=nn.Sequential(*built), downsample=passage(config, stage))
            self.layers.append(nn.Sequential(parts))
        last = config.width(len(config.depths) - 1)
        self.classifier = nn.Sequential(OrderedDict(norm=nn.LayerNorm(last), head=nn.Linear(last, num_classes)))
        init_linear(self)

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """See `PrunableModel`."""
        return (self.config.expand * self.config.width(self.layout.stage_of(index + 1)),) * len(CROSS)

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """See `PrunableModel`."""
        tokens: Tensor = self.classifier.get_submodule("norm")(x)
        return tokens

    def adapt(self, state: dict[str, Tensor], img_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Rename what the first release called otherwise, and flatten linear layers stored as convolutions."""
        own, found = self.state_dict(), dict[str, Tensor]()
        for key, value in state.items():
            for pattern, name in _OLD_NAMES:
                key = re.sub(pattern, name, key)
            flat = key in own and own[key].dim() == 2 and value.dim() == 4 and value.shape[2:] == (1, 1)
            found[key] = value.flatten(1) if flat else value
        return found


_OLD_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^(norm|head)\.", r"classifier.\1."),
)

_SIZES = {
    "tiny_s1l8": VMambaConfig(96, (2, 2, 8, 2), drop_path=0.2),
    "tiny_s2l5": VMambaConfig(96, (2, 2, 5, 2), expand=2, drop_path=0.2),
    "small_s1l20": VMambaConfig(96, (2, 2, 20, 2), drop_path=0.3),
    "small_s2l15": VMambaConfig(96, (2, 2, 15, 2), expand=2, drop_path=0.3),
    "base_s1l20": VMambaConfig(128, (2, 2, 20, 2), drop_path=0.5),
    "base_s2l15": VMambaConfig(128, (2, 2, 15, 2), expand=2, drop_path=0.6),
    "v0_tiny": VMambaConfig(96, (2, 2, 9, 2), expand=2, states=16, mlp=0, v0=True, drop_path=0.2),
    "v0_small": VMambaConfig(96, (2, 2, 27, 2), expand=2, states=16, mlp=0, v0=True, drop_path=0.3),
    "v0_base": VMambaConfig(128, (2, 2, 27, 2), expand=2, states=16, mlp=0, v0=True, drop_path=0.5),
}
for _name, _config in _SIZES.items():
    register(ModelInfo(f"vmamba_{_name}", VMamba, _config, description=f"VMamba {_name} of the authors"))

register(
    ModelInfo(
        "vmamba_nano",
        VMamba,
        VMambaConfig(32, (2, 6, 4), patch=2),
        img_size=32,
        num_classes=10,
        crop_pct=1.0,
        description="12 blocks in three stages, widths 32 to 128, for small images",
    )
)
