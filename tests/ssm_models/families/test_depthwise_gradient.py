"""A depthwise convolution with a backward pass of its own: torch's values, and its gradients up to rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssm_models.families.depthwise_gradient import depthwise_conv


def of_torch(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int] = (3, 3)) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_values_and_gradients_are_torchs(data: st.DataObject) -> None:
    sizes = st.integers(1, 9)
    batch, channels = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 3, 64, 65, 128]))
    grid, sides = data.draw(st.tuples(sizes, sizes)), data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    padding = (data.draw(st.integers(0, sides[0] - 1)), data.draw(st.integers(0, sides[1] - 1)))
    biased = data.draw(st.booleans())
    assume(all(side <= whole + 2 * pad for side, whole, pad in zip(sides, grid, padding, strict=True)))
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(batch, channels, *grid, generator=generator)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, *sides, generator=generator)
    bias = torch.randn(channels, generator=generator) if biased else None
    inputs = [one for one in (x, weight, bias) if one is not None]
    found = []
    for conv in (depthwise_conv, of_torch):
        leaves = [one.clone(memory_format=torch.preserve_format).requires_grad_() for one in inputs]
        y = conv(leaves[0], leaves[1], leaves[2] if biased else None, padding)
        y.backward(torch.randn(y.shape, generator=generator.manual_seed(1)))
        found.append((y, *(leaf.grad for leaf in leaves)))
    ours, theirs = found
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.shape == other.shape
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 1, 7, 7, requires_grad=True)
    depthwise_conv(x, weight, None).sum().backward()
    assert x.grad is None and weight.grad is not None
    with torch.no_grad():
        assert not depthwise_conv(x, weight, None).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_torchs(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    weight = torch.randn(4, 1, 7, 7, dtype=dtype, requires_grad=True)
    y = depthwise_conv(x, weight, None)
    assert y.dtype == dtype and torch.equal(y, of_torch(x, weight, None))
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv(x.float(), weight.float(), None).dtype == torch.bfloat16
