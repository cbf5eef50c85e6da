"""How strongly to prune: the weakest pruning of a shape that costs no more than a target.

A *shape* says after which blocks tokens are dropped and how the pruning is divided between these steps. A *strength*
says how much is pruned in all. It is an integer from 0 (every token stays) to `STRENGTHS`, and a step of weight w
keeps LEAST_KEEP ** (w · strength / STRENGTHS) of its tokens. FLOPs never rise with the strength, so the weakest
pruning within a target is found by bisection.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from spaces.budget import FlopsBudget
from spaces.layout import TokenLayout
from spaces.ratios import keep_ratio
from spaces.schedule import PruningMethod, PruningSchedule, PruningStep

Flops = Callable[[PruningSchedule], int]


class Place(NamedTuple):
    """One step of a shape.

    Attributes:
        after: the block after which tokens are dropped, counted from 1.
        weight: the logarithm of the step's keep ratio, relative to that of the step that prunes most; in [0, 1].
        context: what later blocks see of the dropped tokens; None for the method's context.
    """

    after: int
    weight: float = 1.0
    context: str | None = None


Shape = Sequence[Place]  # in the order of the blocks, one place per block; the largest weight is 1
LEAST_KEEP = 0.05  # the smallest keep ratio: what the strongest pruning keeps at a step of weight 1
STRENGTHS = 4096  # so fine that neighbouring strengths hardly ever differ by more than a token per step
_GUESSES = 6  # interpolated guesses before plain bisection, which bounds the number of FLOPs counts


@dataclass(frozen=True)
class Pruning:
    """A shape at one strength.

    Attributes:
        strength: in 0 … `STRENGTHS`.
        kept: the tokens that remain after each step.
        tokens: the sum over the steps of kept tokens × later blocks that work on them.
        schedule: with canonical keep ratios.
        flops: what the schedule costs.
    """

    strength: int
    kept: tuple[int, ...]
    tokens: int
    schedule: PruningSchedule
    flops: int


class _Step(NamedTuple):
    """What `PruningCurve` needs of a place to count tokens.

    `blocks` work on what the step keeps: those up to the next step or the end of the stage. `grid` is the number of
    tokens before the step if it is the first of its stage, and 0 if the step before determines it.
    """

    weight: float
    blocks: int
    grid: int


def _steps(layout: TokenLayout, shape: Shape) -> list[_Step]:
    found, first = [], 1
    for stage in layout.stages:
        last = first + stage.blocks - 1
        places = [place for place in shape if first <= place.after <= last]
        ends = [*(place.after for place in places[1:]), last]
        for i, (place, end) in enumerate(zip(places, ends[: len(places)], strict=True)):
            weight = place.weight if layout.prunes(place.after) else 0.0
            found.append(_Step(weight, end - place.after, 0 if i else stage.tokens))
        first = last + 1
    return found


class PruningCurve:
    """The prunings of one shape by one method as a function of the strength; FLOPs fall along it.

    Args:
        layout: the model's.
        flops: counts the FLOPs of a schedule.
        shape: where to prune, and in which proportion.
        method: how tokens are pruned.
    """

    def __init__(self, layout: TokenLayout, flops: Flops, shape: Shape, method: PruningMethod) -> None:
        self.shape, self._flops, self._method = shape, flops, method
        self._steps = _steps(layout, shape)

    def at(self, strength: int, known: Sequence[Pruning] = ()) -> Pruning:
        """Return the pruning of a strength; if a known one keeps the same tokens, its FLOPs are not counted again."""
        ratios, kept, tokens = self._kept(strength)
        for other in known:
            if other.kept == tuple(kept):
                return replace(other, strength=strength)
        steps = tuple(
            PruningStep(place.after, ratio, place.context) for place, ratio in zip(self.shape, ratios, strict=True)
        )
        schedule = PruningSchedule(steps, self._method)
        return Pruning(strength, tuple(kept), tokens, schedule, self._flops(schedule))

    def weakest(self, target: float) -> Pruning:
        """Return the weakest pruning that costs at most `target` FLOPs, or the strongest if all cost more."""
        low, high = self.at(0), self.at(STRENGTHS)
        if low.flops <= target:
            return low
        if high.flops > target:
            return high
        guesses = 0
        while high.strength - low.strength > 1:  # low costs more than the target, high does not
            if guesses < _GUESSES:
                middle = self._interpolated(low, high, target)
                guesses += 1
            else:
                middle = (low.strength + high.strength) // 2
            found = self.at(middle, (low, high))
            low, high = (low, found) if found.flops <= target else (found, high)
        return high

    def _interpolated(self, low: Pruning, high: Pruning, target: float) -> int:
        """Guess the strength that meets the target.

        FLOPs are almost linear in the tokens, and tokens are cheap to count. So interpolate the tokens.
        """
        share = (low.flops - target) / max(1, low.flops - high.flops)
        wanted = min(low.tokens - 1.0, low.tokens + share * (high.tokens - low.tokens))
        strengths = range(low.strength + 1, high.strength)
        first = bisect_left(strengths, True, key=lambda strength: self._kept(strength)[2] <= wanted)
        return min(high.strength - 1, low.strength + 1 + first)

    def _kept(self, strength: int) -> tuple[list[float], list[int], int]:
        """Return each step's keep ratio, the tokens it keeps, and `Pruning.tokens`."""
        ratios, counts, tokens, total = [], [], 0, 0
        for step in self._steps:
            tokens = step.grid or tokens
            kept = round(tokens * LEAST_KEEP ** (step.weight * strength / STRENGTHS))
            ratio, tokens = keep_ratio(tokens, max(kept, ceil(LEAST_KEEP * tokens - 1e-9)))
            ratios.append(ratio)
            counts.append(tokens)
            total += tokens * step.blocks
        return ratios, counts, total


class BudgetSolver:
    """Finds schedules within a FLOPs budget, by any of several pruning methods.

    Args:
        layout: the model's; it has at least one place to prune.
        flops: counts the FLOPs of a schedule.
        budget: the range of FLOPs.
        methods: the pruning methods that may be asked for.

    Attributes:
        dense_flops: FLOPs of the dense model.
        limit: FLOPs that no schedule may exceed.
        floors: FLOPs of the cheapest schedule of each method.
        floor: the lowest of `floors`. If it is above `limit`, no schedule fits the budget.
        least: the lowest target: where the budget's range begins, or `floor` if that is higher.
    """

    def __init__(
        self, layout: TokenLayout, flops: Flops, budget: FlopsBudget, methods: Iterable[PruningMethod]
    ) -> None:
        self.layout, self.flops = layout, flops
        self.dense_flops = flops(PruningSchedule())
        self.limit = budget.limit(self.dense_flops)
        self.floors = {method: self._curve(self._earliest_shape, method).at(STRENGTHS).flops for method in methods}
        self.floor = min(self.floors.values())
        self.least = max(self.floor, budget.least(self.dense_flops))

    def least_of(self, method: PruningMethod) -> int:
        """Return the lowest target of a method, which may be unable to reach `least`."""
        return max(self.floors[method], self.least)

    def target(self, share: float, method: PruningMethod) -> float:
        """Return the target that lies a share in [0, 1] of the way from a method's lowest one to the limit."""
        least = self.least_of(method)
        return least + share * (self.limit - least)

    def share(self, flops: int, method: PruningMethod) -> float | None:
        """Return the share whose target is `flops`, as the inverse of `target`; None if it is out of range."""
        least = self.least_of(method)
        return (flops - least) / max(1, self.limit - least) if least <= flops <= self.limit else None

    def cheapest(self, methods: Iterable[PruningMethod]) -> PruningMethod:
        """Return the method that reaches the fewest FLOPs; the first of several."""
        return min(methods, key=self.floors.__getitem__)

    def affordable(self, method: PruningMethod) -> PruningMethod:
        """Return the method, or the cheapest of all if it cannot meet the limit."""
        return method if self.floors[method] <= self.limit else self.cheapest(self.floors)

    def weakest(self, shape: Shape, target: float, method: PruningMethod) -> PruningSchedule:
        """Return the weakest pruning of a shape that costs at most `target` FLOPs.

        The schedule has canonical keep ratios. Where the strongest pruning of the shape costs more than the target,
        the steps move towards the first blocks of their stages. If none of these prunings meets the target, the
        cheapest one is returned, provided that it meets the limit. If it does not, the steps lose contexts of their
        own; as the last resort, one step after the first block of each stage replaces the shape.

        Args:
            shape: where to prune, and in which proportion.
            target: FLOPs, at least `least_of(method)`; then the schedule costs at most `limit`.
            method: how tokens are pruned.
        """
        shapes = [shape, self._earliest_shape]
        if any(place.context for place in shape):
            shapes.insert(1, [place._replace(context=None) for place in shape])
        for candidate in shapes:
            found = self._moved_earlier(candidate, target, method)
            if found.flops <= self.limit:
                break
        return found.schedule

    def _moved_earlier(self, shape: Shape, target: float, method: PruningMethod) -> Pruning:
        """Return the weakest pruning within the target, or the strongest one with all steps as early as possible."""
        while True:
            found = self._curve(shape, method).weakest(target)
            earlier = self._earlier(shape)
            if found.flops <= target or {place.after for place in earlier} == {place.after for place in shape}:
                return found
            shape = earlier

    def _earlier(self, shape: Shape) -> list[Place]:
        """Move each step one block towards the beginning of its stage."""
        places = self.layout.places
        return normalised(p._replace(after=p.after - 1 if p.after - 1 in places else p.after) for p in shape)

    @property
    def _earliest_shape(self) -> list[Place]:
        """The shape that reaches the fewest FLOPs: a step at the first place of each stage."""
        firsts = {self.layout.stage_of(block): block for block in reversed(self.layout.places)}
        return [Place(block) for block in sorted(firsts.values())]

    def _curve(self, shape: Shape, method: PruningMethod) -> PruningCurve:
        return PruningCurve(self.layout, self.flops, shape, method)


def normalised(places: Iterable[Place]) -> list[Place]:
    """Return places as a `Shape`: sorted, one per block, without those of weight 0, the largest weight scaled to 1.

    The weights of places after the same block are added up, and the context of the heaviest is kept. If all weights
    are 0, all become 1.

    >>> normalised([Place(8, 0.2), Place(3, 0.1), Place(3, 0.3, "conv")])
    [Place(after=3, weight=1.0, context='conv'), Place(after=8, weight=0.5, context=None)]
    """
    found: dict[int, Place] = {}
    for place in sorted(places, key=lambda place: (place.after, -place.weight)):
        before = found.get(place.after)
        found[place.after] = place if before is None else before._replace(weight=before.weight + place.weight)
    most = max(place.weight for place in found.values())
    if most <= 0:
        return [place._replace(weight=1.0) for place in found.values()]
    return [place._replace(weight=place.weight / most) for place in found.values() if place.weight > 0]
