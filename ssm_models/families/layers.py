"""Layers, sizes and initialisations that several families share."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn


@dataclass(frozen=True)
class MambaConfig:
    """Sizes of a family without stages.

    Attributes:
        dim: width of the features that travel.
        patch: pixels of a patch's side.
        states: of each channel of the state-space model.
        expand: channels of the state-space model, as a multiple of `dim`.
        drop_path: highest rate of dropping a block's change in training.
    """

    dim: int
    depth: int = 24
    patch: int = 16
    states: int = 16
    expand: int = 2
    drop_path: float = 0.0

    @property
    def inner(self) -> int:
        """Channels of the state-space model."""
        return self.expand * self.dim

    @property
    def rank(self) -> int:
        """Width of the low-rank Δ projection."""
        return math.ceil(self.dim / 16)


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, L, D) of x (b, L, D)."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


def drop_rates(highest: float, blocks: int) -> list[float]:
    """Return the rate of dropping a block's change for each block: it rises evenly from 0 to the highest."""
    return [highest * index / max(1, blocks - 1) for index in range(blocks)]


def init_linear(network: nn.Module) -> None:
    """Draw the weights of all linear layers from a truncated normal distribution (σ = 0.02); biases are 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def dt_projection(rank: int, channels: int) -> nn.Linear:
    """Return a projection whose softplus'd bias is log-uniform in [0.001, 0.1] (Mamba's initialisation)."""
    layer = nn.Linear(rank, channels)
    nn.init.uniform_(layer.weight, -(rank**-0.5), rank**-0.5)
    dt = torch.exp(torch.rand(channels) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
    with torch.no_grad():
        layer.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
    return layer


def a_log(channels: int, states: int) -> nn.Parameter:
    """Return log(-A) (channels, states) for A = -1, -2, …, -states in every channel (S4D-real)."""
    return nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(channels, 1))


def resize_positions(embedding: Tensor, grid: tuple[int, int] | None, goal: tuple[int, int]) -> Tensor:
    """Resize position embeddings (1, h · w, D) of a grid (h, w) to (1, H · W, D), bicubic.

    Embeddings that do not fit the grid, or already have the right one, are returned unchanged; so are those of an
    unknown grid, None.
    """
    if grid is None or grid == goal or grid[0] * grid[1] != embedding.shape[1]:
        return embedding
    places = embedding.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    return F.interpolate(places, goal, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
