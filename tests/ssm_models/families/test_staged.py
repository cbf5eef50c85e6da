"""Grids that halve, and tokens as a grid and back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssm_models.families.staged import as_grid, as_tokens, halved, staged_layout

sides = st.integers(1, 300)


@given(height=sides, width=sides, times=st.integers(0, 5))
def test_each_grid_has_half_the_sides_rounded_up(height: int, width: int, times: int) -> None:
    expected = [(math.ceil(height / 2**i), math.ceil(width / 2**i)) for i in range(times + 1)]
    assert halved((height, width), times) == expected


def test_pixels_beyond_the_last_whole_patch() -> None:
    padded = staged_layout("m", (33, 18), (2, 1), 4).stages
    left_out = staged_layout("m", (33, 18), (2, 1), 4, padded=False).stages
    assert [(s.blocks, s.height, s.width) for s in padded] == [(2, 9, 5), (1, 5, 3)]
    assert [(s.blocks, s.height, s.width) for s in left_out] == [(2, 8, 4), (1, 4, 2)]


def test_images_smaller_than_a_patch() -> None:
    with pytest.raises(ValueError, match=r"m: images of \(3, 9\) pixels are smaller than a patch of 4"):
        staged_layout("m", (3, 9), (2, 1), 4, padded=False)


def test_tokens_stand_in_raster_order() -> None:
    tokens = torch.arange(2 * 6 * 3).view(2, 6, 3)
    grid = as_grid(tokens, (2, 3))
    assert grid.shape == (2, 3, 2, 3)
    assert torch.equal(grid[:, :, 1, 0], tokens[:, 3])
    assert torch.equal(as_tokens(grid), tokens)
