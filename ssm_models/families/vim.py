"""Vim (Zhu et al., arXiv:2401.09417): bidirectional Mamba blocks and a cls token in the middle.

Parameter names are the authors' (hustvl/Vim), so that their checkpoints load as they are.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from spaces import Stage, TokenLayout
from spaces.schedule import IMPORTANCE
from ssm_models.base import PrunableModel
from ssm_models.families.depthwise_gradient import depthwise_conv
from ssm_models.families.directional_scan import ScanWeights, directional_scan
from ssm_models.families.layers import MambaConfig, a_log, dt_projection, resize_positions
from ssm_models.gather import take
from ssm_models.importance import Signals
from ssm_models.registry import ModelInfo, register
from ssm_models.scan_paths import BACKWARD, FORWARD, Direction
from ssm_models.token_view import TokenView


@dataclass(frozen=True)
class VimConfig(MambaConfig):
    """Sizes of a Vim; defaults are the authors'.

    Attributes:
        stride: pixels from a patch to the next.
        conv: taps of the causal convolution.
    """

    stride: int = 16
    conv: int = 4


class VimMixer(nn.Module):
    """Two selective scans, forwards and backwards, that share their input and output projections."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        dim, inner, states, rank = config.dim, config.inner, config.states, config.rank
        self.directions: tuple[Direction, ...] = (FORWARD, BACKWARD)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for suffix in ("", "_b"):
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, config.conv, groups=inner))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * states, bias=False))
            self.add_module(f"dt_proj{suffix}", dt_projection(rank, inner))
            self.register_parameter("A_b_log" if suffix else "A_log", a_log(inner, states))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """Mix travelling tokens (b, T, D), normalised; return the change of the kept ones (b, K, D), and signals."""
        w_x, w_z = self.in_proj.weight.chunk(2)
        u = F.linear(x, w_x)
        z = F.linear(view.kept(x), w_z)
        scans = [self._scan(u, z, view, direction) for direction in self.directions]
        outputs = tuple(y for y, _ in scans)
        y = sum(outputs[1:], outputs[0])
        change = F.linear(y, self.out_proj.weight / 2)  # of the directions' mean, without a pass over y
        if not signal:
            return change, None
        return change, Signals(
            y, lambda: tuple(delta() for _, delta in scans), view.all_positions(), view.seeds, outputs
        )

    def _parameter(self, name: str, reverse: bool) -> Any:
        return getattr(self, f"{name}_b" if reverse else name)

    def _scan(
        self, u: Tensor, z: Tensor, view: TokenView, direction: Direction
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """Return what `directional_scan` does of one direction: the gated output (b, K, D), and what gives Δ."""
        reverse = direction.reverse
        u = causal_conv(view.in_sequence(u), self._parameter("conv1d", reverse), reverse)
        u = F.silu(view.from_sequence(u))
        dt_proj = self._parameter("dt_proj", reverse)
        weights = ScanWeights(
            x_proj=self._parameter("x_proj", reverse).weight,
            dt_proj=dt_proj.weight,
            dt_bias=dt_proj.bias,
            A_log=self.get_parameter("A_b_log" if reverse else "A_log"),
            D=self._parameter("D", reverse),
        )
        return directional_scan(u, view, int(reverse), direction, weights, gate=z)


def causal_conv(x: Tensor, conv: nn.Conv1d, reverse: bool) -> Tensor:
    """Convolve x (b, L, D) depthwise, causally in the direction of the scan."""
    reach = conv.kernel_size[0] - 1
    weight = conv.weight.flip(-1) if reverse else conv.weight
    padded = F.pad(x, (0, 0, 0, reach) if reverse else (0, 0, reach, 0))
    # As an image one pixel high: two-dimensional convolutions take channels-last inputs without a copy.
    picture = padded.transpose(1, 2).unsqueeze(2)
    return depthwise_conv(picture, weight.unsqueeze(2), conv.bias, padding=(0, 0)).squeeze(2).transpose(1, 2)


class VimBlock(nn.Module):
    """RMSNorm, mixer and residual."""

    def __init__(self, config: VimConfig, drop_path: float) -> None:
        super().__init__()
        self.mixer = VimMixer(config)
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`."""
        change, signals = self.mixer(self.norm(x), view, signal)
        return view.update(x, self.drop_path(change)), signals


def patch_grid(config: VimConfig, img_size: tuple[int, int]) -> tuple[int, int]:
    """Return the patches (down, across) of an image of (height, width) pixels."""
    height, width = img_size
    return (height - config.patch) // config.stride + 1, (width - config.patch) // config.stride + 1


class Vim(PrunableModel):
    """Vim with absolute position embeddings and its cls token at index M // 2 of M patches."""

    contexts = (*PrunableModel.contexts, "zeros")
    importances = IMPORTANCE
    global_pool = "token"
    published_directions = (FORWARD,)

    def __init__(
        self,
        config: VimConfig,
        name: str,
        num_classes: int,
        img_size: tuple[int, int],
        *,
        in_chans: int = 3,
    ) -> None:
        grid = patch_grid(config, img_size)
        if min(grid) < 1:
            raise ValueError(f"{name}: images of {img_size} pixels are smaller than a patch of {config.patch}")
        super().__init__(TokenLayout(name, img_size, (Stage(config.depth, *grid),), protected=1), num_classes)
        self.config, self.directions = config, (FORWARD, BACKWARD)
        tokens = self.layout.stages[0].tokens
        self.cls_index = tokens // 2
        proj = nn.Conv2d(in_chans, config.dim, config.patch, config.stride)
        self.patch_embed = nn.Sequential(OrderedDict(proj=proj))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, config.dim))
        rates = [config.drop_path * max(0, i - 1) / max(1, config.depth - 1) for i in range(config.depth)]
        self.layers = nn.ModuleList(VimBlock(config, rate) for rate in rates)
        self.norm_f = nn.RMSNorm(config.dim, eps=1e-5)
        self.head = nn.Linear(config.dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:  # as GPT-2 does, so that the residual's variance does not grow with depth
            weight = block.mixer.out_proj.weight
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            with torch.no_grad():
                weight /= math.sqrt(len(self.layers))

    @property
    def blocks(self) -> Sequence[Any]:
        """See `PrunableModel`."""
        return list(self.layers)

    @property
    def protected(self) -> tuple[int, ...]:
        """The cls token's position."""
        return (self.cls_index,)

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """See `PrunableModel`."""
        return (self.config.inner,) * len(self.directions)

    def use_directions(self, directions: tuple[Direction, ...]) -> None:
        """See `PrunableModel`."""
        self.directions = directions
        for block in self.blocks:
            block.mixer.directions = directions

    def embed(self, images: Tensor) -> Tensor:
        """See `PrunableModel`."""
        patches: Tensor = self.patch_embed(images).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat([patches[:, : self.cls_index], cls, patches[:, self.cls_index :]], 1)
        return tokens + self.pos_embed

    def classify(self, x: Tensor, view: TokenView) -> Tensor:
        """Read the cls token; only it is normalised."""
        if view.sets.travelling_idx is None:
            cls = x[:, self.cls_index]
        else:
            cls = take(x, self._cls_place(view.sets.travelling_idx)[:, None])[:, 0]
        return self.forward_head(self.norm_f(cls)[:, None])

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """See `PrunableModel`; the cls token stands in the middle of those that travel."""
        idx = view.sets.travelling_idx
        if idx is not None:
            is_cls = torch.arange(idx.shape[1], device=idx.device) == self._cls_place(idx)[:, None]
            order, middle = is_cls.long().argsort(dim=1, stable=True), (idx.shape[1] - 1) // 2
            x = take(x, torch.cat([order[:, :middle], order[:, -1:], order[:, middle:-1]], 1))
        tokens: Tensor = self.norm_f(x)
        return tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the cls token."""
        return tokens[:, (tokens.shape[1] - 1) // 2]

    def _cls_place(self, travelling_idx: Tensor) -> Tensor:
        return (travelling_idx == self.cls_index).long().argmax(1)

    @classmethod
    def settings_of(cls, config: VimConfig, state: dict[str, Tensor]) -> dict[str, int]:
        """See `PrunableModel`."""
        return {"num_classes": state["head.weight"].shape[0]}

    @classmethod
    def patches_of(cls, state: dict[str, Tensor]) -> int | None:
        """See `PrunableModel`."""
        positions = state.get("pos_embed")
        return positions.shape[1] - 1 if positions is not None and positions.dim() == 3 else None

    def adapt(self, state: dict[str, Tensor], img_size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Resize the position embeddings of another image size (bicubic), the cls token's aside."""
        old = state.get("pos_embed")
        if old is None or old.dim() != 3 or old.shape[1] < 2:
            return state
        middle = (old.shape[1] - 1) // 2
        patches = torch.cat([old[:, :middle], old[:, middle + 1 :]], 1)
        stage = self.layout.stages[0]
        grid = None if img_size is None else patch_grid(self.config, img_size)
        resized = resize_positions(patches, grid, (stage.height, stage.width))
        if resized is patches:
            return state
        cls = old[:, middle : middle + 1]
        joined = torch.cat([resized[:, : self.cls_index], cls, resized[:, self.cls_index :]], 1)
        return {**state, "pos_embed": joined}


for _name, _config, _about, _file in (
    ("vim_tiny", VimConfig(192), "Vim-T of the authors", "Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth"),
    (
        "vim_small",
        VimConfig(384, drop_path=0.05),
        "Vim-S of the authors",
        "Vim-small-midclstok/vim_s_midclstok_80p5acc.pth",
    ),
    (
        "vim_base",
        VimConfig(768, drop_path=0.1),
        "Vim-B of the authors",
        "Vim-base-midclstok/vim_b_midclstok_81p9acc.pth",
    ),
    (
        "vim_tiny_stride8",
        VimConfig(192, stride=8),
        "Vim-T with overlapping patches, 729 tokens",
        "Vim-tiny-midclstok/vim_t_midclstok_ft_78p3acc.pth",
    ),
    (
        "vim_small_stride8",
        VimConfig(384, stride=8),
        "Vim-S with overlapping patches, 729 tokens",
        "Vim-small-midclstok/vim_s_midclstok_ft_81p6acc.pth",
    ),
):
    register(ModelInfo(_name, Vim, _config, description=_about, authors=f"hf:hustvl/{_file}"))

register(
    ModelInfo(
        "vim_nano",
        Vim,
        VimConfig(64, depth=12, patch=4, stride=4),
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
        "vim_nano_patch8",
        Vim,
        VimConfig(64, depth=12, patch=8, stride=8),
        img_size=64,
        num_classes=10,
        crop_pct=1.0,
        description="vim_nano with patches of 8 pixels, for images of 64",
    )
)
