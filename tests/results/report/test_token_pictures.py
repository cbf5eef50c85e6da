"""Images with the patches that each step drops."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from results.report.token_pictures import THUMBNAIL, Thumbnail, TokenPicture, thumbnails
from tests.results.shown import make_picture


def decoded(thumbnail: Thumbnail) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(thumbnail.source.partition(",")[2]))))


def test_only_dropped_patches_are_faded() -> None:
    picture = make_picture()
    shown = thumbnails(picture)
    assert [thumbnail.caption for thumbnail in shown] == ["whole", "after 3: 25 of 49", "after 6: 5 of 49"]
    whole, first, second = (decoded(thumbnail) for thumbnail in shown)
    cell = THUMBNAIL // 7
    assert whole.shape == (THUMBNAIL, THUMBNAIL, 3)
    assert np.array_equal(whole[:: cell // 4, :: cell // 4][:28, :28], picture.image), "upscaled to the nearest"
    for pixels, kept in ((first, picture.kept[0]), (second, picture.kept[1])):
        for index in range(49):
            row, column = divmod(index, 7)
            patch = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            assert np.array_equal(pixels[patch], whole[patch]) == (index in kept)


def test_each_step_is_shown_on_the_grid_of_its_stage() -> None:
    picture = replace(make_picture(), kept=[list(range(25)), [0, 3]], grids=[(7, 7), (2, 4)])
    whole, _, last = (decoded(thumbnail) for thumbnail in thumbnails(picture))
    same = (whole == last).all(-1)
    assert same[: THUMBNAIL // 2, : THUMBNAIL // 4].all() and same[: THUMBNAIL // 2, 3 * THUMBNAIL // 4 :].all()
    assert same.mean() == pytest.approx(2 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((28, 28), np.uint8)}, "expected"),
        ({"image": np.zeros((28, 28, 3), np.float32)}, "uint8"),
        ({"kept": [[0]]}, "1 lists for 2 steps"),
        ({"grids": [(7, 7)]}, "1 lists for 2 steps"),
        ({"kept": [[0], [49]]}, "outside the grid of 49"),
    ],
)
def test_inconsistent_pictures_are_refused(changes: dict[str, Any], message: str) -> None:
    values = vars(make_picture()) | changes
    with pytest.raises(ValueError, match=message):
        TokenPicture(**values)
