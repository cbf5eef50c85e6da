"""When an evaluation may end early: a paired race against the front, on the same images in the same order.

A candidate joins the front if it is right on more images than the best point that costs no more: its bar. Both
are measured on the same N images, so only those count on which exactly one of the two is right. Let m of the
images run so far be such, b of them in the candidate's favour, with N - n images to come. A candidate that
would join has, over all N, more than half of the discordant images in its favour. The order of the images is
random, so the m seen are a draw without replacement from all M of them, and b is hypergeometric; its lower
tail is largest when M is, hence for M = m + N - n (or one less: an odd M needs a smaller majority) with just over
half in its favour. Where this tail falls below the share of the error rate that a look may spend, the candidate is
given up. The shares add up to the rate (Bonferroni's inequality), so it bounds the probability that a candidate is
stopped which would have joined.
"""

import math

import numpy as np
from numpy.typing import NDArray

GROWTH = 1.5  # of the images from a look to the next: the first ones decide most, and each look costs error


class Race:
    """Decides whether a candidate can still join the front; for one candidate.

    Args:
        bar: (N,) bool, on which images the point to beat is right.
        error: bound in (0, 1) on the probability that a candidate is stopped which would have joined.
    """

    def __init__(self, bar: NDArray[np.bool_], error: float) -> None:
        self._bar, self._error = bar, error
        self._outcomes = np.zeros(0, np.bool_)
        self._last_look = 0
        self._share = error  # of the error that a look may spend

    def lost(self, outcomes: NDArray[np.bool_]) -> bool:
        """Take in on which of the next images the candidate is right; return whether it is to be stopped now."""
        mine = self._outcomes = np.concatenate([self._outcomes, outcomes])
        seen, total = len(mine), len(self._bar)
        if seen < GROWTH * self._last_look or seen >= total or not seen:
            return False
        if not self._last_look:
            self._share = self._error / (1 + math.floor(math.log(total / seen) / math.log(GROWTH)))
        self._last_look = seen
        bar = self._bar[:seen]
        better, worse = int((mine & ~bar).sum()), int((~mine & bar).sum())
        return tail(better, worse, total - seen) <= self._share


def tail(better: int, worse: int, to_come: int) -> float:
    """Return the largest probability of so few wins so far, over all candidates that would join in the end.

    Args:
        better: images on which only the candidate was right.
        worse: images on which only the bar was.
        to_come: images not run yet.
    """
    if better + to_come <= worse:  # it cannot win any more
        return 0.0
    if better >= worse:  # it is not behind; the bound below would not hold, and is not needed
        return 1.0
    drawn = better + worse
    totals = {drawn + to_come, drawn + to_come - 1} if to_come else {drawn}
    return max(hypergeometric_cdf(better, total, total // 2 + 1, drawn) for total in totals)


def hypergeometric_cdf(most: int, total: int, marked: int, drawn: int) -> float:
    """Return the probability of at most `most` marked ones among `drawn` of `total`, of which `marked` are marked."""
    least = max(0, drawn - (total - marked))
    if most < least:
        return 0.0
    most = min(most, drawn, marked)
    counts = np.arange(least, most + 1)
    logs = _log_choose(marked, counts) + _log_choose(total - marked, drawn - counts) - _log_choose(total, drawn)
    return float(min(1.0, np.exp(logs).sum()))


def _log_choose(n: int, k: NDArray[np.int64] | int) -> NDArray[np.float64]:
    chosen = np.atleast_1d(np.asarray(k))
    return np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in chosen.tolist()])
