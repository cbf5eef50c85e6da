"""When an evaluation may end early: a paired race, on the same images in the same order.

A candidate joins the front if it is right on more of the N images than each point that costs no more. Such an
opponent is the best known point, and each cheaper candidate that runs beside it. Only discordant images count, on
which exactly one of the two is right. Of the n images run so far let m be discordant, b of them in the candidate's
favour. A candidate that would join has more than half of all M discordant images in its favour.

Assumption: the N images are in a uniformly random order that knows neither labels nor answers, such as `shuffled` of
`search.data.image_order`. Then the m seen are drawn without replacement from the M, and b is hypergeometric. In an
order that ties an image's place to its class it is not, and a candidate that wins on rare classes may be stopped far
more often than the error says; studies that were begun with the order `stratified` run that risk. The probability is
over the order. A study has one order, so its races are bounded one by one but do not err independently.

The lower tail of b is largest for the largest M, which is m + N - n (or one less, since an odd M needs a smaller
majority), with just over half of them in the candidate's favour. Nothing is asked of the opponent's images to come,
so it may be no farther than the candidate. Where the tail falls below what a look may spend of the error, the
candidate is stopped. What all looks at all opponents may spend adds up to the error, so by Bonferroni's inequality
the error bounds the probability that a candidate is stopped which would have joined.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces import PruningSchedule

GROWTH = 1.5  # of the images from a look to the next: the first ones decide most, and each look costs error


@dataclass(frozen=True)
class Entry:
    """A candidate to evaluate, and what it races against.

    Attributes:
        schedule: of the candidate.
        bar: (N,) bool, on which images the best known point that costs no more is right; None if there is none.
        flops: its cost, by which it races against the cheaper candidates of its group; None keeps it out of that
            race.
    """

    schedule: PruningSchedule
    bar: NDArray[np.bool_] | None = None
    flops: int | None = None


class GroupRace:
    """Decides which candidates of a group can still join the front.

    A candidate spends half of its error on its bar and half on the cheaper candidates of the group, or all of it on
    one of these if there is no other.

    Args:
        images: N, that each candidate will have run in the end.
        error: bound in [0, 1) on the probability that a candidate is stopped which would have joined.
        entries: the candidates.
    """

    def __init__(self, images: int, error: float, entries: Sequence[Entry]) -> None:
        self._bars = [entry.bar for entry in entries]
        self._races: dict[int, dict[int | None, Race]] = {}  # by candidate and opponent, None for the bar
        racing = sorted((entry.flops, i) for i, entry in enumerate(entries) if entry.flops is not None)
        for i, (bar, flops) in enumerate((entry.bar, entry.flops) for entry in entries):
            rivals = [j for cost, j in racing if (cost, j) < (flops, i)] if flops is not None else []
            spent = error if bar is None or not rivals else 0.5 * error  # on the bar, and on all rivals
            races: dict[int | None, Race] = {rival: Race(images, spent / len(rivals)) for rival in rivals}
            self._races[i] = races if bar is None else {None: Race(images, spent), **races}

    def lost(self, outcomes: Sequence[NDArray[np.bool_] | None]) -> dict[int, int | None]:
        """Return which candidates are to be stopped now, each with its winner: a candidate, or None for the bar.

        Call it after each batch. A stopped candidate races no more; one that has run fewer images is no opponent.

        Args:
            outcomes: of each candidate, (n,) bool, on which of the images so far it is right; None if it failed.
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
        error: bound in [0, 1) on the probability that a candidate is stopped which would have won.

    >>> race = Race(images=100, error=0.05)
    >>> race.lost(np.zeros(60, np.bool_), np.ones(60, np.bool_))
    True
    """

    def __init__(self, images: int, error: float) -> None:
        self._images, self._error = images, error
        self._last_look = 0
        self._share = error  # what one look may spend of it

    def lost(self, mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> bool:
        """Return whether the candidate is to be stopped now; call it after each batch.

        Args:
            mine: (n,) bool, on which of the images so far the candidate is right.
            theirs: (n,) or more, of the opponent.
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

    >>> tail(better=3, worse=10, to_come=7)  # it cannot win any more
    0.0
    """
    if better + to_come <= worse:  # it cannot win any more
        return 0.0
    if better >= worse:  # it is not behind; the bound below would not hold, and is not needed
        return 1.0
    drawn = better + worse
    totals = {drawn + to_come, drawn + to_come - 1} if to_come else {drawn}
    return max(hypergeometric_cdf(better, total, total // 2 + 1, drawn) for total in totals)


def hypergeometric_cdf(most: int, total: int, marked: int, drawn: int) -> float:
    """Return the probability of at most `most` marked items among `drawn` of `total`, of which `marked` are marked.

    >>> round(hypergeometric_cdf(0, total=4, marked=2, drawn=2), 4)  # 1 of 6 draws
    0.1667
    """
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
