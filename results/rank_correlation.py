"""How far the ranking of schedules before fine-tuning is that after it, without help from shared images.

Two scores of one schedule on the same images share the luck of these images, which makes the rankings agree more
than they would on others. So the scores before are of one half of the images and those after of the other half, then
the other way round, and the two correlations are averaged. Noise in both still pulls the value towards 0, and the
schedules are the few best of a search, so it describes them and estimates nothing about other schedules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_CHUNK = 50  # resamples at a time, to save memory
_DEFINED = 0.9  # the least share of resamples that must have a correlation

Halves = tuple[float, float]
"""The scores of one schedule on the two halves of the images."""


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's τ-b between the scores of some schedules before and after fine-tuning, by disjoint halves.

    Attributes:
        tau: in -1..1; None if it is undefined, because all scores of a half are equal.
        low, high: the 95 % bootstrap interval over images, for these schedules; None without a score of each image.
        schedules: how many.
        images: how many images both halves have together.
    """

    tau: float | None
    low: float | None
    high: float | None
    schedules: int
    images: int


def kendall_tau(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Return Kendall's τ-b of each row, (R,), of scores (R, K) and (R, K); NaN where all of a row are equal.

    τ-b = Σ sgn(xᵢ - xⱼ) sgn(yᵢ - yⱼ) / √(pairs that differ in x · pairs that differ in y). Source: M. G. Kendall,
    "The treatment of ties in ranking problems", Biometrika 33 (1945).

    >>> kendall_tau(np.array([[1, 2, 3, 4]]), np.array([[1, 3, 2, 4]])).round(4).tolist()
    [0.6667]
    """
    one, other = (np.sign(scores[:, :, None] - scores[:, None, :]).astype(np.float64) for scores in (x, y))
    with np.errstate(invalid="ignore"):
        pairs = np.sqrt((one**2).sum((1, 2)) * (other**2).sum((1, 2)))
        tau: NDArray[np.float64] = (one * other).sum((1, 2)) / pairs
    return tau


def split_half_tau(before: Sequence[Halves], after: Sequence[Halves]) -> float | None:
    """Return the mean of τ-b between `before` on one half and `after` on the other, both ways; None if undefined.

    >>> split_half_tau([(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)], [(0.7, 0.8), (0.8, 0.7), (0.9, 0.9)])
    0.6666666666666666
    """
    if len(before) < 2:
        return None
    return _mean_tau(np.array(before, dtype=float)[None], np.array(after, dtype=float)[None])[0]


def split_half_correlation(
    before: Sequence[Halves],
    after: Sequence[Halves],
    images: int,
    outcomes: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    seed: int = 0,
) -> RankCorrelation:
    """Return τ-b by halves, with its interval if there is an outcome of each image.

    The interval is a percentile bootstrap: the images of each half are drawn again with replacement, the schedules
    stay. It covers the choice of the images and not that of the schedules.

    Args:
        before, after: scores of each schedule on the two halves.
        images: how many the halves have together.
        outcomes: whether each image is right, (K, images) before and after; the first half has images // 2.
        seed: of the resamples.
    """
    tau, ends = split_half_tau(before, after), None
    if tau is not None and outcomes is not None:
        ends = _bootstrap(*outcomes, seed)
    low, high = ends or (None, None)
    return RankCorrelation(tau, low, high, len(before), images)


def _mean_tau(before: NDArray[Any], after: NDArray[Any]) -> list[float | None]:
    """Return for each of R resamples the mean τ-b of scores (R, K, 2); None where it is undefined."""
    both = (kendall_tau(before[..., 0], after[..., 1]) + kendall_tau(before[..., 1], after[..., 0])) / 2
    return [float(tau) if np.isfinite(tau) else None for tau in both]


def _bootstrap(before: NDArray[np.bool_], after: NDArray[np.bool_], seed: int) -> tuple[float, float] | None:
    random = np.random.RandomState(seed)  # its stream is fixed for all versions of NumPy
    middle = before.shape[1] // 2
    halves = [(part[:, :middle], part[:, middle:]) for part in (before.astype(float), after.astype(float))]
    found: list[float] = []
    for _ in range(0, RESAMPLES, _CHUNK):
        scores = []
        counts = [random.multinomial(n, np.full(n, 1 / n), _CHUNK) for n in (middle, before.shape[1] - middle)]
        for parts in halves:
            means = [weights @ part.T / part.shape[1] for weights, part in zip(counts, parts, strict=True)]
            scores.append(np.stack(means, -1))
        found += [tau for tau in _mean_tau(*scores) if tau is not None]
    if len(found) < _DEFINED * RESAMPLES:
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
