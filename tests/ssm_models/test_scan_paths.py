"""Paths over a grid, and their order past pruned tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssm_models.scan_paths import PATHS, RASTER, ScanPath, path_order

ORDERS = {  # of the grid 0 1 2 / 3 4 5, read off the figures
    "rows": [0, 1, 2, 3, 4, 5],
    "columns": [0, 3, 1, 4, 2, 5],
    "columns from the right": [2, 5, 1, 4, 0, 3],
    "antidiagonals": [5, 2, 4, 1, 3, 0],
    "diagonals": [2, 1, 5, 0, 4, 3],
}


@pytest.mark.parametrize("path", PATHS)
def test_the_order_of_a_path(path: str) -> None:
    assert path_order(path, (2, 3)).tolist() == ORDERS[path]


sides = st.integers(1, 7)


@given(st.sampled_from(sorted(PATHS)), sides, sides)
def test_a_path_visits_each_token_once(path: str, height: int, width: int) -> None:
    assert sorted(path_order(path, (height, width)).tolist()) == list(range(height * width))


@given(st.sampled_from(sorted(PATHS)), sides, sides, st.data())
def test_a_scan_path_visits_the_scanned_tokens_alone(path: str, height: int, width: int, data: st.DataObject) -> None:
    length = height * width
    scanned = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    kept_idx = sorted(data.draw(st.sets(st.integers(0, len(scanned) - 1), min_size=1)))
    all_scanned = data.draw(st.booleans()) and len(scanned) == length
    positions = None if all_scanned else torch.tensor([scanned])
    scan_path = ScanPath.of(path, (height, width), positions, torch.tensor([kept_idx]), torch.device("cpu"))
    order = path_order(path, (height, width)).tolist()
    along = [position for position in order if position in scanned]
    features = torch.tensor(scanned)[None, :, None]
    assert scan_path.arrange(features)[0, :, 0].tolist() == along
    if scan_path.positions is not None:
        assert scan_path.positions[0].tolist() == [at for at, position in enumerate(order) if position in scanned]
    elif not all_scanned:
        assert path == RASTER
    kept = [scanned[index] for index in kept_idx]
    assert scan_path.kept_ranks is not None
    ranks = scan_path.kept_ranks[0].tolist()
    assert [along[rank] for rank in ranks] == [position for position in along if position in kept]
    assert scan_path.ranks(torch.tensor([kept_idx]))[0].tolist() == ranks
    assert scan_path.restore(scan_path.kept(scan_path.arrange(features)))[0, :, 0].tolist() == kept
