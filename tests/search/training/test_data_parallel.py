"""Which part of each batch and of val a rank takes, and how the parts add up."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from search.training.data_parallel import SINGLE_PROCESS, DataParallelRank
from spaces import errors


@given(batch=st.integers(1, 200), world_size=st.integers(1, 12))
def test_ranks_cover_a_batch_once_and_keep_pairs_together(batch: int, world_size: int) -> None:
    if (batch + 1) // 2 < world_size:
        with pytest.raises(errors.UsageError, match=f"{world_size} workers need"):
            DataParallelRank(0, world_size).batch_indices(batch)
        return
    parts = [DataParallelRank(rank, world_size).batch_indices(batch) for rank in range(world_size)]
    assert sorted(torch.cat(parts).tolist()) == list(range(batch))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())
        # reversed, a part pairs the same images as the whole batch
        assert (part + part.flip(0)).tolist() == [batch - 1] * len(part)


@given(count=st.integers(0, 200), world_size=st.integers(1, 12))
def test_spans_are_contiguous_and_even(count: int, world_size: int) -> None:
    spans = [DataParallelRank(rank, world_size).span(count) for rank in range(world_size)]
    assert (spans[0][0], spans[-1][1]) == (0, count)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    sizes = [end - start for start, end in spans]
    assert max(sizes) - min(sizes) <= 1


def test_a_single_process_takes_everything() -> None:
    rank, network = DataParallelRank.current(), torch.nn.Linear(2, 2)
    assert (rank, rank.writes) == (SINGLE_PROCESS, True)
    assert rank.wrap(network) is network
    assert rank.sum([1.5, 2], torch.device("cpu")) == [1.5, 2]
    assert rank.batch_indices(7).tolist() == list(range(7))


def worker(rank: int, rendezvous: str) -> None:
    distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Linear(2, 2))
    norm, linear = network
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert isinstance(linear, torch.nn.Linear)
    assert norm.running_mean is not None
    torch.nn.init.constant_(linear.weight, rank)
    norm.running_mean.fill_(2.0 * rank)
    DataParallelRank.current().average_batch_norms(network)
    assert norm.running_mean.tolist() == [1.0] * 3
    assert linear.weight.tolist() == [[rank] * 2] * 2  # parameters are kept equal by their gradients
    distributed.destroy_process_group()


def test_running_statistics_are_averaged_over_ranks(tmp_path: Path) -> None:
    multiprocessing.start_processes(worker, (str(tmp_path / "rendezvous"),), 2)
