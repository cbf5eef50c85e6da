"""Rows of a table against gather and scatter, which say the same for every channel."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssm_models.gather import add, put, take


def across(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[2])


@given(batch=st.integers(1, 4), length=st.integers(1, 9), channels=st.integers(1, 5), data=st.data())
def test_rows_are_what_gather_and_scatter_give(batch: int, length: int, channels: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    count = data.draw(st.integers(1, length))
    x = torch.randn(batch, length, 2 * channels, generator=generator)
    x = data.draw(st.sampled_from([x[..., :channels], x[..., channels:], x[..., :channels].contiguous()]))
    index = torch.rand(batch, length, generator=generator).argsort(1)[:, :count]
    tokens = torch.randn(batch, count, channels, generator=generator)
    assert torch.equal(take(x, index), x.gather(1, across(index, x)))
    assert torch.equal(put(x, index, tokens), x.scatter(1, across(index, x), tokens))
    assert torch.equal(add(x, index, tokens), x.scatter_add(1, across(index, x), tokens))
    assert put(x, index, tokens).data_ptr() != x.data_ptr(), "x stays as it was"


def test_a_place_may_be_taken_and_added_to_more_than_once() -> None:
    x = torch.arange(8.0).view(2, 4, 1)
    index = torch.tensor([[1, 1, 3], [0, 2, 2]])
    assert take(x, index).flatten().tolist() == [1, 1, 3, 4, 6, 6]
    added = add(x, index, torch.ones(2, 3, 1))
    assert added.flatten().tolist() == [0, 3, 2, 4, 5, 5, 8, 7]


def test_gradients() -> None:
    x, tokens = (torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True) for length in (5, 2))
    index = torch.tensor([[0, 4], [3, 1]])
    for run in (lambda x, tokens: take(x, index), lambda x, t: put(x, index, t), lambda x, t: add(x, index, t)):
        assert torch.autograd.gradcheck(run, (x, tokens))
