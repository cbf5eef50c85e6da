"""Training batches: equal for equal seeds, whatever the memory limit and the number of processes."""

from pathlib import Path

import pytest
import torch

from search.data.dataset import open_data
from search.data.preprocessing import Preprocessing
from search.training.batches import TrainingBatches
from search.training.data_parallel import DataParallelRank
from spaces import errors
from tests.search.pictures import write_folder

CFG = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic", "crop_pct": 1.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


@pytest.mark.parametrize("limit", [2**30, 10], ids=["kept", "streamed"])
@pytest.mark.parametrize(("batch", "world_size"), [(8, 2), (7, 3), (5, 1), (12, 6)])
def test_ranks_get_the_parts_of_a_single_process_batch(folder: Path, limit: int, batch: int, world_size: int) -> None:
    data = open_data(f"folder:{folder}", limit)
    whole = list(TrainingBatches(data, Preprocessing(CFG, (12, 12)), batch).epoch(3))
    ranks = [DataParallelRank(rank, world_size) for rank in range(world_size)]
    parts = [list(TrainingBatches(data, Preprocessing(CFG, (12, 12)), batch, rank).epoch(3)) for rank in ranks]
    for number, (images, labels) in enumerate(whole):
        for rank, part in zip(ranks, parts, strict=True):
            mine = rank.batch_indices(batch)
            assert torch.allclose(part[number][0], images[mine], atol=1e-6)
            assert torch.equal(part[number][1], labels[mine])


def test_more_ranks_than_pairs_are_refused(folder: Path) -> None:
    with pytest.raises(errors.UsageError, match="3 workers need 6 images"):
        TrainingBatches(open_data(f"folder:{folder}"), Preprocessing(CFG, (12, 12)), 4, DataParallelRank(0, 3))


@pytest.mark.parametrize("limit", [2**30, 10], ids=["kept", "streamed"])
def test_an_epoch_depends_on_its_seed_alone(folder: Path, limit: int) -> None:
    data = open_data(f"folder:{folder}", limit)
    one, other = (TrainingBatches(data, Preprocessing(CFG, (12, 12)), 5) for _ in range(2))
    list(other.epoch(7))
    torch.rand(3)
    first, again, next_epoch = list(one.epoch(1)), list(other.epoch(1)), list(one.epoch(2))
    assert [len(labels) for _, labels in first] == [5, 5]
    assert all(torch.equal(a, b) and torch.equal(m, n) for (a, m), (b, n) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], next_epoch[0][0])


def test_a_batch_is_never_larger_than_the_split(folder: Path) -> None:
    batches = TrainingBatches(open_data(f"folder:{folder}"), Preprocessing(CFG, (12, 12)), 100)
    assert (len(batches), batches.batch_size) == (1, 12)
