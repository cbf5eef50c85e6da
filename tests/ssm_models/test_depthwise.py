"""Some outputs of a convolution, tap by tap, equal those on the scattered grid."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssm_models.depthwise import depthwise
from tests.ssm_models.conftest import NESTED, fates_of_a_batch, places, view_of


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_is_the_convolution_of_the_scattered_grid(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    tall, wide = data.draw(st.sampled_from([(3, 3), (5, 3), (1, 1), (7, 7)]))
    kept, bias = data.draw(st.booleans()), data.draw(st.booleans())
    fates = data.draw(fates_of_a_batch(2, height * width, "drop", "conv", "freeze"))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    conv = nn.Conv2d(4, 4, (tall, wide), padding=(tall // 2, wide // 2), groups=4, bias=bias)
    view = replace(view_of(fates), grid=(height, width))
    full = torch.zeros(2, height * width, 4)
    x = torch.randn(2, len(places(fates[0], *NESTED[0])), 4)
    for b, image in enumerate(fates):
        full[b, places(image, *NESTED[0])] = x[b]
    whole = conv(full.transpose(1, 2).unflatten(2, (height, width))).flatten(2).transpose(1, 2)
    expected = torch.stack([whole[b, places(image, *NESTED[2 if kept else 1])] for b, image in enumerate(fates)])
    with torch.inference_mode():
        found = depthwise(x, conv, view, kept)
    assert torch.allclose(found, expected, atol=1e-5)
    with_gradients = depthwise(x, conv, replace(view), kept)
    assert torch.allclose(with_gradients, expected, atol=1e-5)
