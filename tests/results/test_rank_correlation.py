"""Kendall's τ before and after fine-tuning: its formula, and that shared images do not push it up."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau

from results.rank_correlation import Halves, kendall_tau, split_half_correlation, split_half_tau

SCHEDULES, IMAGES = 8, 400


def halves(outcomes: NDArray[np.bool_]) -> list[Halves]:
    middle = outcomes.shape[1] // 2
    return [(float(row[:middle].mean()), float(row[middle:].mean())) for row in outcomes]


def test_it_is_scipys_with_ties_too() -> None:
    random = np.random.RandomState(0)
    for _ in range(100):
        x, y = random.randint(0, 4, (2, 1, 6))
        expected = kendalltau(x[0], y[0]).statistic
        assert kendall_tau(x, y)[0] == pytest.approx(expected, nan_ok=True)


def test_schedules_that_are_equally_good_have_none_by_halves() -> None:
    """The models before and after answer most images alike, so on shared images chance alone ranks both alike."""
    random = np.random.RandomState(1)
    shared, by_halves = [], []
    for _ in range(200):
        before = random.rand(SCHEDULES, IMAGES) < 0.85
        after = np.where(random.rand(SCHEDULES, IMAGES) < 0.8, before, random.rand(SCHEDULES, IMAGES) < 0.85)
        shared.append(kendall_tau(before.mean(1)[None], after.mean(1)[None])[0])
        by_halves.append(split_half_tau(halves(before), halves(after)) or 0.0)
    assert np.mean(shared) > 0.5
    assert abs(np.mean(by_halves)) < 0.05


def test_clear_differences_are_found_with_an_interval() -> None:
    random, better = np.random.RandomState(2), np.linspace(0.5, 0.95, SCHEDULES)[:, None]
    before, after = (random.rand(SCHEDULES, IMAGES) < better for _ in range(2))
    found = split_half_correlation(halves(before), halves(after), IMAGES, (before, after))
    assert found.low is not None and found.high is not None and found.tau is not None
    assert 0.6 < found.low <= found.tau <= 1 and found.high <= 1
    assert (found.schedules, found.images) == (SCHEDULES, IMAGES)
    assert found == split_half_correlation(halves(before), halves(after), IMAGES, (before, after))
    assert split_half_correlation(halves(before), halves(after), IMAGES).low is None, "no outcome of each image"


def test_equal_scores_have_none() -> None:
    found = split_half_correlation([(0.5, 0.5)] * 3, [(0.1, 0.2), (0.2, 0.1), (0.3, 0.3)], 10)
    assert (found.tau, found.low) == (None, None)
