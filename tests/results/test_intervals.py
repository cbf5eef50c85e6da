"""The interval of a share, against published values, its definition and its coverage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.intervals import Z95, wilson_interval

COUNTS = st.integers(1, 10**6).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images)))


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Z² / (n + Z²), by hand
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_equal_published_values(right: int, images: int, low: float, high: float) -> None:
    assert wilson_interval(right / images, images) == pytest.approx((low, high), abs=5e-5)


@given(COUNTS)
def test_a_normal_test_just_accepts_the_ends(count: tuple[int, int]) -> None:
    right, images = count
    share = right / images
    low, high = wilson_interval(share, images)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / images), rel=1e-6)


@given(COUNTS)
def test_intervals_are_symmetric_and_narrow_with_more_images(count: tuple[int, int]) -> None:
    right, images = count
    low, high = wilson_interval(right / images, images)
    assert wilson_interval((images - right) / images, images) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    narrower = wilson_interval(right / images, 4 * images)
    assert narrower[1] - narrower[0] < high - low


@pytest.mark.parametrize("images", [50, 200, 1000])
def test_coverage_is_95_percent(images: int) -> None:
    intervals = [wilson_interval(k / images, images) for k in range(images + 1)]
    logs = [math.lgamma(images + 1) - math.lgamma(k + 1) - math.lgamma(images - k + 1) for k in range(images + 1)]
    covered = []
    for truth in (i / 200 for i in range(10, 191)):
        chances = [
            math.exp(choose + k * math.log(truth) + (images - k) * math.log1p(-truth))
            for k, choose in enumerate(logs)
        ]
        covered.append(sum(p for p, (low, high) in zip(chances, intervals, strict=True) if low <= truth <= high))
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.005)
    assert min(covered) > 0.91, "the number of correct answers is an integer, so coverage oscillates"


@pytest.mark.parametrize(("share", "images"), [(0.5, 0), (1.5, 10), (-0.1, 10), (math.nan, 10)])
def test_invalid_shares_are_refused(share: float, images: int) -> None:
    with pytest.raises(ValueError, match="has no interval"):
        wilson_interval(share, images)
