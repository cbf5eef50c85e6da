"""ViM2 (Behrouz et al., arXiv:2403.19888, version 1): token mixers, channel mixers, averages of earlier outputs.

The authors published no code, and the paper leaves much open. These choices were made here:

- **Sizes** are those of Table 8: in each stage two token mixers, then a channel mixer, and so on. A *block* is a
  token mixer and the channel mixer after it, if there is one, so that a schedule may prune after each token mixer.
- **The token mixer** is that of VMamba's first release: y_t = Σ_k SSM_k(u) ⊙ silu(g), u = silu(DWConv(Linear x)), g =
  Linear x, with the four scans of the cross-scan, 16 states, a norm before the gate and a linear layer after it. The
  paper's formula computes Δ, B and C from x, but its text calls Mamba and VMamba special cases, which compute them
  from u. They are computed from u here.
- **The channel mixer** of the formulas has weights of shape L × L, but the figures run one set of weights at 112 to
  1024 pixels, so the weights here do not depend on the resolution. Each token is a sequence of its channels: y =
  Linear(Σ_d S6_d(u_d) ⊙ silu(g)), u_d = silu(Conv1d(Linear x)), g = Linear x. The directions d run forwards and
  backwards over the channels (the flip of the formula), each with its own convolution (causal, 4 taps), Δ, B and C.
  One step of the sequence is `group` channels: Δ, B and C are linear in the step, and of a single channel they would
  only be multiples of it. The width of the sequence is Table 8's "CW": the next stage's width, or the last stage's
  own.
- **Norm and residual** surround each mixer. Neither is in the formulas, but without the residual ViM2 would not equal
  VMamba for the weights for which the paper says that it does.
- **Averages**: each mixer m reads an average over all earlier outputs of its stage, including the stage's input y_0:
  x_m = Σ_{i<m} w_{m,i} y_i and y_m = x_m + mixer_m(norm(x_m)). The scalars w are learned and start as 1 for the
  newest output and 0 for the others (DenseFormer), which makes it VMamba with channel mixers. The paper's α and β (θ
  and γ) are these weights for the outputs of token and of channel mixers; its two terms of y_0 are one here. A last
  average over all outputs leaves the stage (the box after the last mixer in the figures).
- **Patches** are merged between the stages as in VMamba's first release; the head reads the normalised mean of all
  tokens.

With pruning, the output of a mixer for a token that it did not compute is the token's last output. So the average of
a frozen token still changes with the weights, and a pruned token returns with the average over all its outputs, the
last one repeated, at no cost.

All outputs of the stage travel side by side, newest last: (b, T, n · D), where n grows by one with each mixer.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from spaces.schedule import IMPORTANCE
from ssm_models.families.layers import a_log, drop_rates, dt_projection, init_linear
from ssm_models.families.staged import StagedModel, staged_layout
from ssm_models.families.vmamba import SS2D, PatchMerging, VMambaConfig, patch_embedding
from ssm_models.importance import Signals
from ssm_models.precision import precise
from ssm_models.registry import ModelInfo, register
from ssm_models.scan import channel_last_scan
from ssm_models.scan_paths import CROSS
from ssm_models.token_view import TokenView


@dataclass(frozen=True)
class ViM2Config(VMambaConfig):
    """Sizes of a ViM2: those of a VMamba of the first release, and the channel mixers'.

    Attributes:
        every: token mixers before each channel mixer.
        group: channels that are one step of a channel mixer's sequence.
        conv: width of its convolution.
    """

    expand: int = 2
    states: int = 16
    mlp: int = 0
    v0: bool = True
    every: int = 2
    group: int = 16
    conv: int = 4

    def channels(self, stage: int) -> int:
        """Channels of the sequence of a channel mixer in a stage: the next stage's width, or its own in the last."""
        return self.width(min(stage + 1, len(self.depths) - 1))


class ChannelMixer(nn.Module):
    """A selective scan along the channels of each token, forwards and backwards."""

    def __init__(self, config: ViM2Config, dim: int, channels: int) -> None:
        super().__init__()
        self.group, self.states, self.channels = config.group, config.states, channels
        self.rank = max(1, config.group // 16)
        group, width = config.group, self.rank + 2 * config.states
        self.in_proj = nn.Linear(dim, 2 * channels, bias=False)
        paths = [dt_projection(self.rank, group) for _ in range(2)]
        self.conv_weight = nn.Parameter(torch.empty(2, group, 1, config.conv).uniform_(-1, 1) * config.conv**-0.5)
        self.conv_bias = nn.Parameter(torch.zeros(2, group))
        self.x_proj_weight = nn.Parameter(torch.empty(2, width, group).uniform_(-1, 1) * group**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.stack([path.weight.detach() for path in paths]))
        self.dt_projs_bias = nn.Parameter(torch.stack([path.bias.detach() for path in paths]))
        self.A_logs = a_log(2 * group, config.states)
        self.Ds = nn.Parameter(torch.ones(2 * group))
        self.out_norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of normalised tokens (b, K, D), each token for itself."""
        u, gate = self.in_proj(x).chunk(2, -1)
        steps = u.reshape(-1, self.channels // self.group, self.group)  # a sequence for each token
        A_logs, Ds = self.A_logs.chunk(2), self.Ds.chunk(2)
        y = sum(self._scan(steps, k, A_logs[k], Ds[k]) for k in range(2))
        assert isinstance(y, Tensor)
        mixed: Tensor = self.out_proj(self.out_norm(y.reshape(u.shape)) * F.silu(gate))
        return mixed

    def _scan(self, steps: Tensor, k: int, A_log: Tensor, D: Tensor) -> Tensor:
        """Return what direction k (0 forwards, 1 backwards) gives for the sequences (T, S, group)."""
        weight = self.conv_weight[k]
        around = (weight.shape[2] - 1, 0)
        if k:  # causal against its way
            weight, around = weight.flip(2), around[::-1]
        u = F.silu(
            F.conv1d(F.pad(steps.transpose(1, 2), around), weight, self.conv_bias[k], groups=self.group)
        ).transpose(1, 2)
        dt, B, C = torch.split(F.linear(u, self.x_proj_weight[k]), [self.rank, self.states, self.states], -1)
        delta = F.linear(dt, self.dt_projs_weight[k])
        return channel_last_scan(
            u,
            delta,
            -torch.exp(precise(A_log)),
            B,
            C,
            D=precise(D),
            delta_bias=precise(self.dt_projs_bias[k]),
            delta_softplus=True,
            reverse=bool(k),
        )


def newest_weights(outputs: int) -> nn.Parameter:
    """Return the weights of an average over so many outputs: all on the newest."""
    weights = torch.zeros(outputs)
    weights[-1] = 1
    return nn.Parameter(weights)


def average(outputs: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i w_i y_i (b, T, D) of outputs (b, T, n · D), side by side, by their weights (n,)."""
    apart = outputs.reshape(*outputs.shape[:2], len(weights), -1)
    return (apart * weights[:, None]).sum(-2)


class ViM2Block(nn.Module):
    """A token mixer and, where one follows, the channel mixer, each on its average of the outputs before it.

    Args:
        config, dim, channels: sizes.
        outputs: mixers of the stage before it, plus one for the stage's input.
        mixes_channels: whether a channel mixer follows.
        drop_path: rate of dropping a mixer's change.
    """

    def __init__(
        self, config: ViM2Config, dim: int, channels: int, outputs: int, mixes_channels: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.dim, self.mixers = dim, 1 + mixes_channels
        self.token_weights = newest_weights(outputs)
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(config, dim)
        if mixes_channels:
            self.channel_weights = newest_weights(outputs + 1)
            self.channel_norm = nn.LayerNorm(dim)
            self.channel_mixer = ChannelMixer(config, dim, channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, view: TokenView, signal: bool) -> tuple[Tensor, Signals | None]:
        """See `PrunableModel`; x (b, T, n · D) has all outputs of the stage, and one or two more afterwards."""
        mean = average(x, self.token_weights)
        change, signals = self.op(self.norm(mean), view, signal)
        x = self._append(x, view, view.kept(mean) + self.drop_path(change))
        if self.mixers > 1:
            mean = average(view.kept(x), self.channel_weights)
            x = self._append(x, view, mean + self.drop_path(self.channel_mixer(self.channel_norm(mean))))
        return x, signals

    def _append(self, x: Tensor, view: TokenView, values: Tensor) -> Tensor:
        """Append a mixer's output: the values (b, K, D) of the kept tokens, the last output of the others."""
        return torch.cat([x, view.renew(x[..., -self.dim :], values)], -1)


class ViM2(StagedModel):
    """ViM2 for classification: the mean of all tokens of the last stage's average, then a linear head."""

    class_layers = ("classifier.head",)
    importances = IMPORTANCE
    directions = published_directions = CROSS

    def __init__(
        self, config: ViM2Config, name: str, num_classes: int, img_size: tuple[int, int], *, in_chans: int = 3
    ) -> None:
        super().__init__(staged_layout(name, img_size, config.depths, config.patch, padded=False), num_classes)
        self.config = config
        self.patch_embed = patch_embedding(config, in_chans)
        rates = iter(drop_rates(config.drop_path, sum(config.depths)))
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            blocks, outputs, dim = list[nn.Module](), 1, config.width(stage)
            for index in range(1, depth + 1):
                mixes = index % config.every == 0
                blocks.append(ViM2Block(config, dim, config.channels(stage), outputs, mixes, next(rates)))
                outputs += 1 + mixes
            last = stage + 1 == len(config.depths)
            layer = nn.Module()
            layer.blocks = nn.ModuleList(blocks)
            layer.leaving_weights = newest_weights(outputs)
            layer.downsample = nn.Identity() if last else PatchMerging(dim)
            self.layers.append(layer)
        self.classifier = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim), head=nn.Linear(dim, num_classes)))
        init_linear(self)

    def scan_channels(self, index: int) -> tuple[int, ...]:
        """See `PrunableModel`."""
        return (self.config.expand * self.config.width(self.layout.stage_of(index + 1)),) * len(CROSS)

    def pass_by(self, index: int, left: Tensor) -> Tensor:
        """See `PrunableModel`: the last output stands for those of the block's mixers too."""
        block = self.blocks[index]
        return torch.cat([left, *[left[..., -block.dim :]] * block.mixers], -1)

    def leave(self, stage: int, x: Tensor) -> Tensor:
        """Return the average (b, L, D) of all outputs (b, L, n · D) of a stage."""
        weights: Tensor = self.layers[stage].get_parameter("leaving_weights")
        return average(x, weights)

    def downsample(self, stage: int, x: Tensor, aside: tuple[Tensor, ...] = ()) -> Tensor:
        """See `PrunableModel`."""
        return super().downsample(stage, self.leave(stage, x), aside)

    def last_tokens(self, x: Tensor, view: TokenView) -> Tensor:
        """See `PrunableModel`."""
        tokens: Tensor = self.classifier.get_submodule("norm")(self.leave(len(self.layers) - 1, x))
        return tokens


_SIZES = {
    "tiny": ViM2Config(96, (2, 2, 6, 2), drop_path=0.2),
    "small": ViM2Config(96, (2, 2, 18, 2), drop_path=0.3),
    "base": ViM2Config(128, (2, 2, 18, 2), drop_path=0.5),
}
for _name, _config in _SIZES.items():
    register(ModelInfo(f"vim2_{_name}", ViM2, _config, description=f"ViM2 {_name} by version 1 of its paper"))

register(
    ModelInfo(
        "vim2_nano",
        ViM2,
        ViM2Config(16, (2, 6, 2), patch=2, states=8, group=8),
        img_size=32,
        num_classes=10,
        crop_pct=1.0,
        description="10 token mixers and 5 channel mixers in three stages, widths 16 to 64, for small images",
    )
)
