"""Depthwise convolutions at some positions: the same as over the grid with zeros where nothing is left of a token."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_models.families.depthwise import at_kept, at_seen
from tests.ssm_models.conftest import NESTED, fates_of_a_batch, places, view_of


@settings(max_examples=40)
@given(st.data())
def test_at_some_positions_it_is_the_convolution_over_the_scattered_grid(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    fates = data.draw(fates_of_a_batch(2, height * width, "drop", "conv", "freeze"))
    side, biased = data.draw(st.sampled_from([1, 3, 5])), data.draw(st.booleans())
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    full, weight, bias = torch.randn(2, height * width, 3), torch.randn(3, 1, side, side), torch.randn(3)
    bias = bias if biased else None
    travels, seen, kept = (torch.tensor([places(image, *members) for image in fates]) for members in NESTED)
    rows = torch.arange(2)[:, None]
    scattered = torch.zeros_like(full)
    scattered[rows, travels] = full[rows, travels]
    grid = scattered.transpose(1, 2).unflatten(2, (height, width))
    expected = F.conv2d(grid, weight, bias, padding=side // 2, groups=3).flatten(2).transpose(1, 2)
    x, view = full[rows, travels].requires_grad_(), replace(view_of(fates), grid=(height, width))
    with torch.inference_mode():
        plain = replace(view)
        assert torch.allclose(at_seen(x.detach(), weight, bias, plain), expected[rows, seen], atol=1e-5)
        assert torch.allclose(at_kept(x.detach(), weight, bias, plain), expected[rows, kept], atol=1e-5)
    assert torch.allclose(at_seen(x, weight, bias, view), expected[rows, seen], atol=1e-5)
    found = at_kept(x, weight, bias, view)
    assert torch.allclose(found, expected[rows, kept], atol=1e-5)
    scattered.requires_grad_()
    grid = scattered.transpose(1, 2).unflatten(2, (height, width))
    F.conv2d(grid, weight, bias, padding=side // 2, groups=3).flatten(2).transpose(1, 2)[rows, kept].sum().backward()
    found.sum().backward()
    assert torch.allclose(x.grad, scattered.grad[rows, travels], atol=1e-5)
