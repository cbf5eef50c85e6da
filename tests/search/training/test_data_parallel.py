"""The parts of batches and of val that processes take."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from search.training.data_parallel import Share
from spaces import errors


@given(batch=st.integers(1, 200), world=st.integers(1, 12))
def test_parts_of_a_batch_cover_it_once_and_hold_an_image_with_its_pair(batch: int, world: int) -> None:
    if (batch + 1) // 2 < world:
        with pytest.raises(errors.UsageError, match=f"{world} workers need"):
            Share(0, world).places(batch)
        return
    parts = [Share(rank, world).places(batch) for rank in range(world)]
    assert sorted(torch.cat(parts).tolist()) == list(range(batch))
    for part in parts:
        assert part.tolist() == sorted(part.tolist())
        # turned over, a part pairs the images that the whole batch pairs
        assert (part + part.flip(0)).tolist() == [batch - 1] * len(part)


@given(count=st.integers(0, 200), world=st.integers(1, 12))
def test_spans_follow_each_other(count: int, world: int) -> None:
    spans = [Share(rank, world).span(count) for rank in range(world)]
    assert (spans[0][0], spans[-1][1]) == (0, count)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    sizes = [end - start for start, end in spans]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_is_all_of_it() -> None:
    share, network = Share.of_process(), torch.nn.Linear(2, 2)
    assert (share, share.first) == (Share(0, 1), True)
    assert share.join(network) is network
    assert share.total([1.5, 2], torch.device("cpu")) == [1.5, 2]
    assert share.places(7).tolist() == list(range(7))


def worker(rank: int, meeting: str) -> None:
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Linear(2, 2))
    norm, linear = network
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert isinstance(linear, torch.nn.Linear)
    assert norm.running_mean is not None
    torch.nn.init.constant_(linear.weight, rank)
    norm.running_mean.fill_(2.0 * rank)
    Share.of_process().even_out(network)
    assert norm.running_mean.tolist() == [1.0] * 3
    assert linear.weight.tolist() == [[rank] * 2] * 2  # what is trained is the same by its gradients
    distributed.destroy_process_group()


def test_running_statistics_become_their_mean(tmp_path: Path) -> None:
    multiprocessing.start_processes(worker, (str(tmp_path / "meeting"),), 2)
