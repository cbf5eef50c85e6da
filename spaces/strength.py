"""How strongly to prune: all prunings of one shape in a line, and the weakest of them that a target allows.

A shape says after which blocks tokens are dropped, and in which proportion: a strength s in 0 … `STRENGTHS` keeps
LEAST_KEEP ** (weight · s / STRENGTHS) of the tokens at a step. FLOPs fall as the strength rises.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from spaces.layout import TokenLayout
from spaces.ratios import keep_ratio
from spaces.schedule import PruningMethod, PruningSchedule, PruningStep


class Place(NamedTuple):
    """Where a shape prunes: after which block, how much beside its other places, and in which context of its own."""

    after: int
    weight: float = 1.0
    context: str | None = None


# Blocks rise from 1 on, weights lie in (0, 1], one of them is 1.
Shape = Sequence[Place]
LEAST_KEEP = 0.05  # below it a step leaves hardly a token
STRENGTHS = 4096  # finer than the counts of tokens
_GUESSES = 6  # after which the search only halves, so that it ends soon whatever the costs


@dataclass(frozen=True)
class Pruning:
    """A shape at one strength: the tokens that each step keeps, their sum over the later blocks, and its FLOPs."""

    strength: int
    kept: tuple[int, ...]
    tokens: int
    schedule: PruningSchedule
    flops: int


class Prunings:
    """The prunings of one shape by one method, in canonical ratios, by strength.

    Args:
        layout: the model's.
        flops: what a schedule costs.
        shape: see `Shape`.
        method: how tokens are pruned.
    """

    def __init__(
        self,
        layout: TokenLayout,
        flops: Callable[[PruningSchedule], int],
        shape: Shape,
        method: PruningMethod,
    ) -> None:
        self.shape, self._flops, self._method = shape, flops, method
        self._steps: list[tuple[float, int, int]] = []  # weight, blocks that it serves, tokens if its grid is new
        first = 1
        for stage in layout.stages:
            last = first + stage.blocks - 1
            mine = [place for place in shape if first <= place.after <= last]
            ends = [*(place.after for place in mine), last]
            weights = [place.weight if layout.prunes(place.after) else 0.0 for place in mine]
            for i, weight in enumerate(weights):
                self._steps.append((weight, ends[i + 1] - ends[i], 0 if i else stage.tokens))
            first = last + 1

    def _counts(self, strength: int) -> tuple[list[float], list[int], int]:
        """Return each step's ratio, what it keeps, and the sum of that over the later blocks."""
        ratios, counts, tokens, total = [], [], 0, 0
        for weight, blocks, grid in self._steps:
            tokens = grid or tokens
            kept = round(tokens * LEAST_KEEP ** (weight * strength / STRENGTHS))
            ratio, tokens = keep_ratio(tokens, max(kept, ceil(LEAST_KEEP * tokens - 1e-9)))
            ratios.append(ratio)
            counts.append(tokens)
            total += tokens * blocks
        return ratios, counts, total

    def at(self, strength: int, known: Sequence[Pruning] = ()) -> Pruning:
        """Return the pruning of a strength; its FLOPs are those of a known one that keeps the same tokens."""
        ratios, counts, tokens = self._counts(strength)
        for other in known:
            if other.kept == tuple(counts):
                return replace(other, strength=strength)
        steps = tuple(
            PruningStep(place.after, ratio, place.context) for place, ratio in zip(self.shape, ratios, strict=True)
        )
        schedule = PruningSchedule(steps, self._method)
        return Pruning(strength, tuple(counts), tokens, schedule, self._flops(schedule))

    def weakest(self, target: float) -> Pruning:
        """Return the weakest pruning that costs at most `target` FLOPs; the strongest if all cost more."""
        low, high = self.at(0), self.at(STRENGTHS)
        if low.flops <= target:
            return low
        if high.flops > target:
            return high
        guesses = 0
        while high.strength - low.strength > 1:  # low costs more than the target, high does not
            middle = (low.strength + high.strength) // 2
            if guesses < _GUESSES:
                # FLOPs go nearly straight with the tokens, which cost nothing to count: so look for these.
                share = (low.flops - target) / max(1, low.flops - high.flops)
                wanted = min(low.tokens - 1.0, low.tokens + share * (high.tokens - low.tokens))
                middle = min(high.strength - 1, self._first(low.strength + 1, high.strength, wanted))
                guesses += 1
            found = self.at(middle, (low, high))
            low, high = (low, found) if found.flops <= target else (found, high)
        return high

    def _first(self, start: int, stop: int, wanted: float) -> int:
        """Return the first strength from `start` on that leaves at most `wanted` tokens, or `stop`."""
        return start + bisect_left(range(start, stop), True, key=lambda s: self._counts(s)[2] <= wanted)
