"""VSSD (Shi et al., arXiv:2407.18559): a non-causal state-space model in stages.

Parameter names are the authors' (YuHengsss/VSSD), so that their checkpoints load as they are.

The authors keep what a token adds to the state and drop the decay of the state. Each token t has one weight per head,
m_t = Δ_t · exp(A_log), and all tokens read the same sum:

    y_t = C_t Σ_s B_sᵀ (m_s u_s) + D u_t

There is no order, so there are no directions and no gaps: pruning a token equals setting its weight to zero, and all
alignment policies compute the same. The family supports only the default one.

Published are 2.3, 4.5, 7.4 and 16.1 GFLOPs by plain fvcore; here they are 2.39, 4.66, 7.71 and 16.65. fvcore counts a
product that is broadcast over h heads as one head, so it misses (h - 1) / h of the two products in the sum: 0.10,
0.22, 0.39 and 0.65 GFLOPs. Without these the counts are 2.29, 4.45, 7.32 and 16.00, within 1.3 % of the published
ones, which also include norms, free here. Every multiplication that runs is counted.

Scores are computed from LN(y) · z. In the last stage they are computed from the output of the attention, all heads
side by side, before its projection. There Δ is replaced by the mean attention that a token receives from the kept
tokens: like m, its share in what the others read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssm_models.families.depthwise import at_kept, at_seen
from ssm_models.families.layers import MLP, drop_rates, init_linear
from ssm_models.families.staged import StagedModel, staged_layout
from ssm_models.importance import Signals
from ssm_models.precision import precise
from ssm_models.registry import ModelInfo, register
from ssm_models.token_view import TokenView


@dataclass(frozen=True)
class VSSDConfig:
    """Sizes of a VSSD; defaults are the authors'.

    Attributes:
        dim: width of the first stage; each further one has twice the width of the one before.
        depths: blocks of each stage.
        heads: of each stage.
        states: of the state-space model.
        patch: pixels of a patch's side, 2 or 4.
        expand: channels of the state-space model, as a multiple of the width.
        drop_path: highest rate of dropping a block's change in training.
    """

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...] = (2, 4, 8, 16)
    states: int = 64
    patch: int = 4
    expand: int = 2
    drop_path: float = 0.0

    def width(self, stage: int) -> int:
        """Width of the features of a stage, from 0."""
        return self.dim << stage


def by_head(x: Tensor, weights: Tensor) -> Tensor:
    """Multiply the channels of x (b, L, D), head by head, by weights (b, L, heads) or (heads,)."""
    return (x.reshape(*x.shape[:2], weights.shape[-1], -1) * weights[..., None]).flatten(2)


def order_free(u: Tensor, m: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Let each token read the weighted sum of all: y_t = C_t Σ_s B_sᵀ (m_s u_s).

    Args:
        u: (b, S, D) inputs, D = heads · channels of a head.
        m: (b, S, heads) weights of the tokens.
        B: (b, S, N).
        C: (b, K, N) of the tokens that read.

    Returns:
        (b, K, D).
    """
    return C @ (B.transpose(1, 2) @ by_head(u, m))


class VSSDMixer(nn.Module):
    """A 3×3 convolution and the sum over tokens."""

    def __init__(self, config: VSSDConfig, dim: int, heads: int) -> None:
        super().__init__()
        self.inner, self.states = config.expand * dim, config.states
        convolved = self.inner + 2 * self.states
        self.in_proj = nn.Linear(dim, self.inner + convolved + heads, bias=False)  # rows z, x, B, C, Δ
        self.conv2d = nn.Conv2d(convolved, convolved, 3, padding=1, groups=convolved)
        dt = torch.exp(torch.empty(heads).uniform_(-6.9078, -2.3026)).clamp(min=1e-4)  # log-uniform in [0.001, 0.1]
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.LayerNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """Mix travelling tokens (b, T, D), normalised; return the change of the kept ones (b, K, D), and signals."""
        w_z, w_xbc, w_dt = torch.split(self.in_proj.weight, [self.inner, self.conv2d.in_channels, len(self.A_log)])
        z, conv_bias = F.linear(view.kept(x), w_z), self.conv2d.bias
        assert conv_bias is not None
        seen = F.silu(at_seen(F.linear(x, w_xbc), self.conv2d.weight, conv_bias, view))
        u, B, C = torch.split(seen, [self.inner, self.states, self.states], -1)
        delta = F.softplus(precise(F.linear(view.scanned(x), w_dt)) + precise(self.dt_bias))
        m = (delta * torch.exp(precise(self.A_log))).to(u.dtype)
        reads, own = view.kept_of_scanned(C), view.kept_of_scanned(u)
        y = self.norm(order_free(u, m, B, reads) + by_head(own, self.D)) * z
        change: Tensor = self.out_proj(y)
        if not signal:
            return change, None

        def deltas() -> tuple[Tensor, ...]:
            return (view.kept_of_scanned(delta),)

        return change, Signals(y, deltas, view.all_positions(), view.seeds)


class Attention(nn.Module):
    """Softmax attention of the kept tokens to the scanned ones."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `VSSDMixer.forward`."""
        w_q, w_kv = torch.split(self.to_qkv.weight, [x.shape[2], 2 * x.shape[2]])
        k, v = (self._by_head(part) for part in F.linear(view.scanned(x), w_kv).chunk(2, -1))
        q = self._by_head(F.linear(view.kept(x), w_q))
        attention = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(-1)
        y = (attention @ v).transpose(1, 2).flatten(2)
        change: Tensor = self.to_out(y)
        if not signal:
            return change, None

        def received() -> tuple[Tensor, ...]:
            share = attention.mean(2).transpose(1, 2)
            return (view.kept_of_scanned(share),)

        return change, Signals(y, received, view.all_positions(), view.seeds)

    def _by_head(self, x: Tensor) -> Tensor:
        """Turn (b, L, D) into (b, heads, L, D / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class VSSDBlock(nn.Module):
    """Mixer and MLP, with a convolution that tells positions before each; all four are added to the residual."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.cpe1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = mixer
        self.cpe2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`."""
        x = view.update(x, self._placed(self.cpe1, x, view))
        change, signals = self.attn(self.norm1(x), view, signal)
        x = view.update(x, self.drop_path(change))
        x = view.update(x, self._placed(self.cpe2, x, view))
        return view.update(x, self.drop_path(self.mlp(self.norm2(view.kept(x))))), signals

    def _placed(self, conv: nn.Conv2d, x: Tensor, view: TokenView) -> Tensor:
        """Convolve the travelling tokens on their grid; return the kept ones (b, K, D)."""
        assert conv.bias is not None
        return at_kept(x, conv.weight, conv.bias, view)


class ConvLayer(nn.Module):
    """Convolution, then batch norm and ReLU where the authors have them."""

    def __init__(
        self, inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1,
        *, bias: bool = False, norm: bool = True, act: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h, w) of x (b, inputs, H, W)."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class Stem(nn.Module):
    """Images to the grid of the first stage."""

    def __init__(self, config: VSSDConfig, in_chans: int) -> None:
        super().__init__()
        half = config.dim // 2
        self.conv1 = ConvLayer(in_chans, half, 3, 2)
        self.conv2 = nn.Sequential(ConvLayer(half, half, 3), ConvLayer(half, half, 3, act=False))
        wide = ConvLayer(half, 4 * config.dim, 3, config.patch // 2)
        self.conv3 = nn.Sequential(wide, ConvLayer(4 * config.dim, config.dim, act=False))

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (b, c, H, W) into (b, D, h, w)."""
        x = self.conv1(images)
        y: Tensor = self.conv3(x + self.conv2(x))
        return y


class Downsample(nn.Module):
    """From a stage's grid to the next one's, of half its sides."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        inner = 2 * ratio * dim
        self.conv = nn.Sequential(
            ConvLayer(dim, inner, bias=True, norm=False),
            ConvLayer(inner, inner, 3, 2, inner, bias=True, norm=False),
            ConvLayer(inner, 2 * dim, bias=True, act=False),
        )

    def forward(self, grid: Tensor) -> Tensor:
        """Return (b, 2 D, h', w') of a grid (b, D, h, w)."""
        y: Tensor = self.conv(grid)
        return y


class VSSDStage(nn.Module):
    """Blocks of one width, and the downsampling after them."""

    def __init__(self, blocks: Sequence[nn.Module], dim: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if last else Downsample(dim)


class VSSD(StagedModel):
    """VSSD for classification: the mean of the normalised tokens, then a linear head."""

    alignments = ("on",)
    directions = published_directions = ()  # nothing is scanned

    def __init__(
        self, config: VSSDConfig, name: str, num_classes: int, img_size: tuple[int, int], *, in_chans: int = 3
    ) -> None:
        super().__init__(staged_layout(name, img_size, config.depths, config.patch), num_classes)
        self.config = config
        self.patch_embed = Stem(config, in_chans)
        rates = iter(drop_rates(config.drop_path, sum(config.depths)))
        self.layers = nn.ModuleList()
        for index, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
            dim, last = config.width(index), index + 1 == len(config.depths)
            mixers = [Attention(dim, heads) if last else VSSDMixer(config, dim, heads) for _ in range(depth)]
            self.layers.append(VSSDStage([VSSDBlock(dim, mixer, next(rates)) for mixer in mixers], dim, last))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        init_linear(self)

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """None: nothing is scanned."""
        return ()

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """See `PrunableModel`."""
        tokens: Tensor = self.norm(x)
        return tokens


for _name, _config, _file in (
    ("vssd_micro", VSSDConfig(48, (2, 2, 8, 4), states=48, drop_path=0.2), "vssd_micro_best.pth"),
    ("vssd_tiny", VSSDConfig(64, (2, 4, 8, 4), drop_path=0.2), "vssd_tiny_best_ema.pth"),
    ("vssd_small", VSSDConfig(64, (3, 4, 21, 5), drop_path=0.4), "vssd_small_best_ema.pth"),
    ("vssd_base", VSSDConfig(96, (3, 4, 21, 5), (3, 6, 12, 24), drop_path=0.6), "vssd_base_best_ema.pth"),
):
    _about, _weights = f"VSSD {_name.removeprefix('vssd_')} of the authors", f"hf:YuhengSSS/VSSD/{_file}"
    register(ModelInfo(_name, VSSD, _config, description=_about, authors=_weights))

register(
    ModelInfo(
        "vssd_nano",
        VSSD,
        VSSDConfig(32, (2, 6, 4), (2, 4, 8), states=16, patch=2),
        img_size=32,
        num_classes=10,
        crop_pct=1.0,
        description="12 blocks in three stages, widths 32 to 128, for small images",
    )
)
