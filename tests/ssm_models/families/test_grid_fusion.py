"""What a UNet does between its grids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn

from ssm_models.families.grid_fusion import MFMS, PatchExpanding, dct_basis, frequencies_on, kernel_of


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_basis_is_that_of_scipy(height: int, width: int, seed: int) -> None:
    grid = torch.rand(height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    every = [(u, v) for u in range(height) for v in range(width)]
    found = (dct_basis(height, width, every).double() * grid).sum((1, 2))
    expected = torch.from_numpy(dctn(grid.numpy(), type=2)) / 4  # scipy's has a factor 2 a side
    assert torch.allclose(found.view(height, width), expected, atol=1e-5)


def test_frequencies_of_other_grids() -> None:
    assert frequencies_on(7, 7) == [(0, 0), (0, 1), (6, 0), (0, 5)]
    assert frequencies_on(14, 21) == [(0, 0), (0, 3), (12, 0), (0, 15)]
    assert frequencies_on(1, 4) == [(0, 0), (0, 1), (0, 0), (0, 3)]  # none that the grid has not


def test_the_kernel_over_channels() -> None:
    assert [kernel_of(channels) for channels in (96, 192, 384, 768)] == [3, 5, 5, 5]


def test_the_fusion_weighs_two_grids() -> None:
    torch.manual_seed(0)
    fusion = MFMS(8, (4, 6)).eval()
    skip, grid = torch.randn(2, 8, 4, 6), torch.randn(2, 8, 4, 6)
    fused = fusion(skip, grid)
    assert torch.all(fused <= torch.maximum(skip, grid)) and torch.all(fused >= torch.minimum(skip, grid))
    assert torch.allclose(fusion(skip, skip), skip, atol=1e-6)


def test_the_fusion_s_weights_by_the_formula() -> None:
    torch.manual_seed(0)
    fusion = MFMS(4, (3, 3)).eval()
    skip, grid = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    both, total = skip + grid, torch.zeros(1, 4)
    for pool, reduce in zip(fusion.pools, (torch.mean, torch.amax, torch.amin), strict=True):
        waves = dct_basis(3, 3, frequencies_on(3, 3))
        numbers = torch.stack([reduce((both * wave).flatten(2), 2) for wave in waves]).mean(0)
        kernel, padded = pool.weight[0, 0], torch.nn.functional.pad(numbers, (len(pool.weight[0, 0]) // 2,) * 2)
        total += torch.stack([(padded[:, c : c + len(kernel)] * kernel).sum(1) for c in range(4)], 1)
    weight = torch.sigmoid(total[:, :, None, None] + fusion.local(both))
    assert torch.allclose(fusion(skip, grid), weight * skip + (1 - weight) * grid, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_a_larger_grid_is_cut_to_size(size: tuple[int, int]) -> None:
    expanding = PatchExpanding(8, 4, 2)
    whole = expanding(torch.ones(1, 8, 3, 4), (6, 8))
    part = expanding(torch.ones(1, 8, 3, 4), size)
    assert part.shape == (1, 4, *size)
    assert torch.equal(part, whole[:, :, : size[0], : size[1]])
