"""The confidence interval of a proportion that was measured on a sample."""

import math

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
