"""Confidence intervals of proportions that were measured on a sample, and of differences of two."""

import math
from statistics import NormalDist

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution: two-sided 95 %


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval (low, high), in 0..1, of a share measured on `images` images.

    The interval holds every proportion p that a normal test does not reject, |share - p| ≤ z √(p (1 - p) / n), so

        (share + z²/2n ± z √(share (1 - share) / n + z²/4n²)) / (1 + z²/n)

    Unlike share ± z √(share (1 - share) / n) it stays within 0..1, and has a width at 0 and 1. Source: E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> low, high = wilson_interval(0.5, 10)
    >>> round(low, 4), round(high, 4)
    (0.2366, 0.7634)

    Args:
        share: the measured proportion, in 0..1.
        images: the sample size.

    Raises:
        ValueError: there are no images, or the share is outside 0..1.
    """
    if images < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share of {share} on {images} images has no interval: expected 0..1, on at least one")
    weight = Z95 * Z95 / images
    center = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # For a share of 0 or 1 the interval ends exactly there; rounding would miss it.
    return (0.0 if share == 0 else max(0.0, center - half)), (1.0 if share == 1 else min(1.0, center + half))


def z_of(comparisons: int) -> float:
    """Return the normal quantile of two-sided 95 % intervals that hold for so many comparisons at once.

    By Bonferroni's inequality, which needs no independence.

    >>> round(z_of(1), 2), round(z_of(10), 2)
    (1.96, 2.81)
    """
    return NormalDist().inv_cdf(1 - 0.025 / comparisons)


def paired_interval(better: int, worse: int, images: int, comparisons: int = 1) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of the difference of two shares, measured on the same images.

    Only images count on which exactly one of the two is right. With p = (better + 1) / (n + 2) and
    q = (worse + 1) / (n + 2) the interval is p - q ± z √((p + q - (p - q)²) / (n + 2)), cut off at ±1. Unlike Wald's,
    it has a width where no image tells the two apart. Source: D. G. Bonett and R. M. Price, "Adjusted Wald Confidence
    Interval for a Difference of Binomial Proportions Based on Paired Data", Journal of Educational and Behavioral
    Statistics 37 (2012).

    >>> low, high = paired_interval(better=10, worse=30, images=1000)
    >>> round(low, 4), round(high, 4)
    (-0.0326, -0.0073)

    Args:
        better: images on which only the first is right.
        worse: images on which only the second is right.
        images: the sample size.
        comparisons: how many such intervals are to hold at once with a probability of 95 %.

    Raises:
        ValueError: there are fewer images than these, or no comparison.
    """
    if min(better, worse) < 0 or better + worse > images or images < 1 or comparisons < 1:
        raise ValueError(f"{better} and {worse} of {images} images, {comparisons} comparisons: no interval")
    p, q = (better + 1) / (images + 2), (worse + 1) / (images + 2)
    half = z_of(comparisons) * math.sqrt((p + q - (p - q) ** 2) / (images + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)
