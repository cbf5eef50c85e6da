"""Paths over a grid, and ways along them past pruned tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssm_models.scan_paths import PATHS, RASTER, Way, path_order

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
def test_a_way_leads_past_what_is_not_seen(path: str, height: int, width: int, data: st.DataObject) -> None:
    length = height * width
    seen = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
    emits = sorted(data.draw(st.sets(st.integers(0, len(seen) - 1), min_size=1)))
    all_seen = data.draw(st.booleans()) and len(seen) == length
    way = Way.of(
        path, (height, width), None if all_seen else torch.tensor([seen]), torch.tensor([emits]), torch.device("cpu")
    )
    order = path_order(path, (height, width)).tolist()
    along = [position for position in order if position in seen]
    features = torch.tensor(seen)[None, :, None]
    assert way.arrange(features)[0, :, 0].tolist() == along
    if way.seen is not None:
        assert way.seen[0].tolist() == [place for place, position in enumerate(order) if position in seen]
    elif not all_seen:
        assert path == RASTER
    kept = [seen[place] for place in emits]
    assert way.emit is not None
    assert [along[place] for place in way.emit[0].tolist()] == [position for position in along if position in kept]
    assert way.restore(way.emitting(way.arrange(features)))[0, :, 0].tolist() == kept
