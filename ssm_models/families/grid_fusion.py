"""Layers between the grids of a UNet: fusion of a skip with a decoder's grid, and patch expanding.

MFMS is the multi-frequency multi-scale block of CVMH-UNet (arXiv:2410.05624): from a skip F and a decoder's grid G
it computes w F + (1 - w) G with w = sigmoid(global(X) + local(X)), X = F + G, a weight for each channel and place.
"""

import math

import torch
from torch import Tensor, nn

# The first frequencies (down, across) of those that FcaNet (arXiv:2012.11879) found best, on a grid of 7 × 7.
FREQUENCIES = ((0, 0), (0, 1), (6, 0), (0, 5))
FREQUENCY_GRID = 7


def frequencies_on(height: int, width: int) -> list[tuple[int, int]]:
    """Return `FREQUENCIES` on another grid: multiplied as FcaNet does, and at most the highest of the grid."""

    def on(side: int, frequency: int) -> int:
        return min(frequency * max(1, side // FREQUENCY_GRID), side - 1)

    return [(on(height, u), on(width, v)) for u, v in FREQUENCIES]


def dct_basis(height: int, width: int, frequencies: list[tuple[int, int]]) -> Tensor:
    """Return the DCT-II basis (K, H, W): cos(π u (h + ½) / H) · cos(π v (w + ½) / W) for each (u, v).

    The paper prints the ½ at u and v; FcaNet, whose frequencies these are, has it at h and w: (0, 0) is constant.
    """

    def waves(side: int, chosen: list[int]) -> Tensor:
        places = torch.arange(side, dtype=torch.float64) + 0.5
        return torch.cos(math.pi / side * torch.tensor(chosen, dtype=torch.float64)[:, None] * places)

    down, across = waves(height, [u for u, _ in frequencies]), waves(width, [v for _, v in frequencies])
    return (down[:, :, None] * across[:, None, :]).float()


def kernel_of(channels: int) -> int:
    """Return the width of a convolution over C channels: |log2(C) / 2 + 1 / 2|, odd (ECA-Net, arXiv:1910.03151)."""
    width = int(abs(math.log2(channels) / 2 + 0.5))
    return width if width % 2 else width + 1


class MFMS(nn.Module):
    """Weigh a skip against a decoder's grid.

    The global part takes the mean, the largest and the smallest value of X times each basis function, averages each
    over the functions, and adds up a convolution over the channels of each. The local part is a bottleneck of a
    quarter of the channels. How many functions there are is not given; four, since each is a pass over the grid.

    Args:
        channels: of both grids.
        grid: (height, width).
    """

    basis: Tensor

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("basis", dct_basis(*grid, frequencies_on(*grid)).flatten(1), persistent=False)
        width = kernel_of(channels)
        self.pools = nn.ModuleList([nn.Conv1d(1, 1, width, padding=width // 2, bias=False) for _ in range(3)])
        hidden = max(1, channels // 4)
        self.local = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, skip: Tensor, grid: Tensor) -> Tensor:
        """Return the weighted sum (b, C, H, W) of two grids (b, C, H, W)."""
        both = skip + grid
        products = [both.flatten(2) * wave for wave in self.basis.to(both.dtype)]
        pooled = [
            sum(product.mean(2) for product in products),
            sum(product.amax(2) for product in products),
            sum(product.amin(2) for product in products),
        ]
        count = len(products)
        gathered = [pool((p / count)[:, None])[:, 0] for pool, p in zip(self.pools, pooled, strict=True)]
        weight = torch.sigmoid(self.local(both) + (gathered[0] + gathered[1] + gathered[2])[:, :, None, None])
        return weight * skip + (1 - weight) * grid


class PatchExpanding(nn.Module):
    """Expand each token into `scale` × `scale` neighbours (VM-UNet, arXiv:2402.02491).

    Args:
        inputs, outputs: channels.
        scale: neighbours a side.
    """

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(inputs, scale**2 * outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, grid: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn a grid (b, C, H, W) into (b, outputs, *size), cut to that size at the far edges."""
        batch, _, height, width = grid.shape
        x = self.expand(grid.permute(0, 2, 3, 1)).reshape(batch, height, width, self.scale, self.scale, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height * self.scale, width * self.scale, -1)
        normed: Tensor = self.norm(x[:, : size[0], : size[1]])
        return normed.permute(0, 3, 1, 2)
