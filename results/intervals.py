"""How far a share that was measured on some images may be from that on all such images."""

import math

Z95 = 1.959963984540054  # standard deviations within which 95 % of a normal distribution lie


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a share that was measured on so many images.

    Wilson's score interval (E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22, 1927): all shares p that a normal test does not reject,
    |share - p| ≤ z √(p (1 - p) / n). Unlike the textbook ± it stays within 0..1 and has a width at 0 and 1.

    Args:
        share: in 0..1.
        images: how many it was measured on.

    Raises:
        ValueError: there are no images, or the share is outside 0..1.
    """
    if images < 1 or not 0 <= share <= 1:
        raise ValueError(f"no interval of a share of {share} on {images} images")
    weight = Z95 * Z95 / images
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # At 0 and 1 the interval begins exactly there, which rounding would miss.
    return (0.0 if share == 0 else max(0.0, middle - half)), (1.0 if share == 1 else min(1.0, middle + half))
