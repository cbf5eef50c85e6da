"""When an evaluation may end early: a paired race, on the same images in the same order.

A candidate joins the front if it is right on more images than each point that costs no more. Such an opponent is
the best of them that is known already, and so is each cheaper candidate that runs beside it. Both are measured on
the same N images, so only those count on which exactly one of the two is right. Let m of the n images run so far
be such, b of them in the candidate's favour. A candidate that would join has, over all N, more than half of the
discordant images in its favour. The order of the images is random, so the m seen are a draw without replacement
from all M of them, and b is hypergeometric; its lower tail is largest when M is, hence for M = m + N - n (or one
less: an odd M needs a smaller majority) with just over half in its favour. Nothing is asked of the opponent's images
to come, so it may be as far as the candidate. Where the tail falls below the share of the error rate that a look may
spend, the candidate is given up. The shares of all looks and opponents add up to the rate (Bonferroni's inequality),
so it bounds the probability that a candidate is stopped which would have joined.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GROWTH = 1.5  # of the images from a look to the next: the first ones decide most, and each look costs error


class BroodRace:
    """Decides which candidates of a brood can still join the front: what each races against, and at what error.

    A candidate spends half of its error on its bar and the rest on the cheaper ones of the brood; all of it on one of
    these if there is no other.

    Args:
        images: N, that each candidate will have run in the end.
        error: bound in [0, 1) on the probability that a candidate is stopped which would have joined.
        bars: for each candidate (N,) bool, on which images the best known point that costs no more is right, or None.
        costs: what each candidate costs; None leaves it out of the race in the brood.
    """

    def __init__(
        self, images: int, error: float, bars: Sequence[NDArray[np.bool_] | None], costs: Sequence[int | None]
    ) -> None:
        self._bars = bars
        self._races: dict[int, dict[int | None, Race]] = {}  # by candidate and opponent, None the bar
        racing = sorted((cost, i) for i, cost in enumerate(costs) if cost is not None)
        for i, bar in enumerate(bars):
            rivals = [j for cost, j in racing if (cost, j) < (costs[i], i)] if costs[i] is not None else []
            shares = [1.0] if bar is None or not rivals else [0.5, 0.5]
            races: dict[int | None, Race] = {
                rival: Race(images, error * shares[-1] / len(rivals)) for rival in rivals
            }
            self._races[i] = races if bar is None else {None: Race(images, error * shares[0]), **races}

    def lost(self, outcomes: Sequence[NDArray[np.bool_] | None]) -> dict[int, int | None]:
        """Return which candidates are to be stopped now, and who beat each: a candidate, or None for its bar.

        Asked after each batch. Who has been stopped races no more, and who has not come as far is no opponent.

        Args:
            outcomes: of each candidate, on which of the images so far it is right; None if it failed.
        """
        beaten: dict[int, int | None] = {}
        for i, races in self._races.items():
            mine = outcomes[i]
            if mine is None:
                continue
            for opponent, race in races.items():
                theirs = self._bars[i] if opponent is None else outcomes[opponent]
                if theirs is not None and len(theirs) >= len(mine) and race.lost(mine, theirs):
                    beaten[i] = opponent
                    break
        for i in beaten:
            del self._races[i]
        return beaten


class Race:
    """Decides whether a candidate can still win against one opponent.

    Args:
        images: N, that both will have run in the end.
        error: bound in (0, 1) on the probability that the candidate is stopped although it would have won.
    """

    def __init__(self, images: int, error: float) -> None:
        self._images, self._error = images, error
        self._last_look = 0
        self._share = error  # of the error that a look may spend

    def lost(self, mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> bool:
        """Return whether the candidate is to be stopped now; asked after each batch.

        Args:
            mine: (n,) on which of the images so far the candidate is right.
            theirs: (n,) or more: the opponent.
        """
        seen, total = len(mine), self._images
        if seen < GROWTH * self._last_look or seen >= total or not seen:
            return False
        if not self._last_look:
            self._share = self._error / (1 + math.floor(math.log(total / seen) / math.log(GROWTH)))
        self._last_look = seen
        theirs = theirs[:seen]
        better, worse = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
        return tail(better, worse, total - seen) <= self._share


def tail(better: int, worse: int, to_come: int) -> float:
    """Return the largest probability of so few wins so far, over all candidates that would join in the end.

    Args:
        better: images on which only the candidate was right.
        worse: images on which only the opponent was.
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
