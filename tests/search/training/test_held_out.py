"""Scores on images that chose nothing: halves add up to the whole, and a file keeps what cannot be measured again."""

from dataclasses import replace
from pathlib import Path

import pytest

from search.data.dataset import open_data
from search.data.image_set import ImageSet
from search.models import open_model
from search.training.held_out import HeldOutFile, HeldOutScore, score_held_out


def test_halves_and_outcomes_add_up_to_the_score() -> None:
    data = open_data("embedded")
    model, images = open_model("vim_nano", None, data), ImageSet("val", 45, skip=200)
    score = score_held_out(model, data, images)
    right = score.right(45)
    assert score.top1 == pytest.approx(right.mean())
    assert score.halves == pytest.approx((right[:22].mean(), right[22:].mean()))
    pixels, labels = next(iter(images.batches(data, model)))
    assert (model(pixels).argmax(1) == labels).tolist() == right.tolist()


def test_a_score_is_measured_once_for_its_images(tmp_path: Path) -> None:
    score = HeldOutScore(0.5, 1.0, (0.25, 0.75), "f0")
    kept = HeldOutFile(tmp_path / "new", ImageSet("val", 4))
    assert kept.measured("before", lambda: score) == score
    assert kept.measured("before", lambda: replace(score, top1=0.9)) == score
    assert kept.read("epoch 1") is None
    assert replace(kept, images=ImageSet("val", 4, skip=1)).read("before") is None
