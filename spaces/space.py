"""Which schedules a search may try: parameters in, a schedule within the budget out.

Every space describes a candidate by where tokens are dropped, in which proportion, and by a target:
how many FLOPs it may cost, within the budget's range (or from what the space reaches, if that is more).
The kept tokens follow from these: they fall as the pruning's strength rises, FLOPs fall with them, and the
weakest pruning that costs no more than the target is taken. So no candidate exceeds the budget, and none has
to be rejected. Each number of kept tokens has one ratio (`ratios.py`), so what computes the same has one hash.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import ClassVar

from spaces.budget import FlopsBudget
from spaces.errors import BudgetError, ScheduleError, SpaceError, UnknownNameError
from spaces.layout import TokenLayout
from spaces.schedule import METHOD_CHOICES, PruningMethod, PruningSchedule
from spaces.strength import LEAST_KEEP, STRENGTHS, Prunings, Shape

Value = float | int | str


@dataclass(frozen=True)
class FloatParameter:
    """A real number in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class IntParameter:
    """A whole number in [low, high]."""

    low: int
    high: int


@dataclass(frozen=True)
class ChoiceParameter:
    """One of several names."""

    choices: tuple[str, ...]


Parameter = FloatParameter | IntParameter | ChoiceParameter


class SearchSpace(ABC):
    """A space over one model and budget; pure, and the same in every process that makes it.

    A searcher asks for `parameters`, draws values, and calls `schedule`. Whatever the values within
    their bounds, the schedule costs at most `limit`.

    Attributes:
        layout: the model's.
        choices: the method's choices that are open, by name; one where nothing is to be chosen.
        flops: what a schedule costs.
        dense_flops: what the dense model costs.
        limit: FLOPs that no candidate exceeds.
        least: FLOPs from which targets are spread up to `limit`: the budget's, or what the space reaches.
        floor: FLOPs of the cheapest schedule in the space.
    """

    name: ClassVar[str]

    def __init__(
        self,
        layout: TokenLayout,
        flops: Callable[[PruningSchedule], int],
        budget: FlopsBudget,
        choices: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.layout, self.choices, self.flops = layout, dict(choices), flops
        self.dense_flops = flops(PruningSchedule())
        self.limit = budget.limit(self.dense_flops)
        self._floors = {method: flops(self._cheapest(method)) for method in self._methods()}
        self.floor = min(self._floors.values())
        self.least = max(self.floor, budget.least(self.dense_flops))
        if self.floor > self.limit:
            raise BudgetError(
                f"FLOPs budget {budget}: {self.limit:,} FLOPs, but the cheapest schedule of space {self.text!r} on "
                f"{layout.model} costs {self.floor:,}; raise it to {self.floor / self.dense_flops:.3f}"
            )

    @property
    def text(self) -> str:
        """The canonical text that makes this space again, whatever the default choices become."""
        plain = PruningMethod().as_dict()
        stated = (k for k, v in self.choices.items() if v != (plain[k],) or len(DEFAULT_CHOICES[k]) > 1)
        return ";".join([self._shape_text, *(f"{k}={','.join(self.choices[k])}" for k in stated)])

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What a searcher has to choose, by name."""
        found: dict[str, Parameter] = dict(self._shape())
        found["target"] = FloatParameter(0.0, 1.0)
        for name, choices in self.choices.items():
            if len(choices) > 1:
                found[name] = ChoiceParameter(choices)
        return found

    def schedule(self, values: Mapping[str, Value]) -> PruningSchedule:
        """Return the schedule that the parameters' values stand for; it costs at most `limit`."""
        method = self._affordable(
            PruningMethod(**{k: str(values[k]) if len(v) > 1 else v[0] for k, v in self.choices.items()})
        )
        least = self.least_of(method)
        target = least + float(values["target"]) * (self.limit - least)
        return self.weakest(self._decode(values), target, method)

    def weakest(self, shape: Shape, target: float, method: PruningMethod) -> PruningSchedule:
        """Return the weakest pruning of `shape` that costs at most `target` FLOPs, in canonical ratios.

        Where even the strongest costs more, the steps move forward, a block at a time.

        Args:
            shape: (after, weight) of each step; the logarithms of the keep ratios are as the weights.
            target: at least what the space reaches with `method`.
            method: how tokens are pruned.
        """
        found = Prunings(self.layout, self.flops, shape, method).weakest(target)
        while found.flops > target and any(after > 1 for after, _ in shape):
            shape = _earlier(shape)
            found = Prunings(self.layout, self.flops, shape, method).weakest(target)
        return found.schedule if found.flops <= self.limit else self._cheapest(method)

    def values(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        """Return values that (nearly) give a schedule back; None if the space cannot express it."""
        chosen = schedule.method.as_dict()
        if any(chosen[name] not in choices for name, choices in self.choices.items()):
            return None
        if any(step.after >= self.layout.depth or step.keep < LEAST_KEEP for step in schedule.steps):
            return None
        cost, least = self.flops(schedule), self.least_of(schedule.method)
        shape = self._encode(schedule) if schedule.steps else None
        if shape is None or not least <= cost <= self.limit:
            return None
        found = {**shape, "target": (cost - least) / max(1, self.limit - least)}
        return found | {name: chosen[name] for name, choices in self.choices.items() if len(choices) > 1}

    def least_of(self, method: PruningMethod) -> int:
        """Return the FLOPs from which targets are spread for a method, which may not reach `least`."""
        return max(self._floors[method], self.least)

    def _methods(self) -> list[PruningMethod]:
        methods: list[dict[str, str]] = [{}]
        for name, choices in self.choices.items():
            methods = [{**method, name: choice} for method in methods for choice in choices]
        return list(dict.fromkeys(PruningMethod(**method) for method in methods))

    def _affordable(self, method: PruningMethod) -> PruningMethod:
        """Return the method, or the cheapest one where it cannot reach the budget."""
        if self._floors[method] <= self.limit:
            return method
        return min(self._floors, key=self._floors.__getitem__)

    def _cheapest(self, method: PruningMethod) -> PruningSchedule:
        return Prunings(self.layout, self.flops, [(1, 1.0)], method).at(STRENGTHS).schedule

    @property
    @abstractmethod
    def _shape_text(self) -> str:
        """The part of `text` that says where tokens may be dropped."""

    @abstractmethod
    def _shape(self) -> dict[str, Parameter]:
        """Parameters for the places of the steps and how they share the pruning."""

    @abstractmethod
    def _decode(self, values: Mapping[str, Value]) -> list[tuple[int, float]]:
        """Return (after, weight) of each step: blocks in 1 … depth - 1, weights in (0, 1], one of them 1."""

    @abstractmethod
    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        """Return the values of `_shape` for a schedule with steps, or None."""


class StagesSpace(SearchSpace):
    """K steps: after which blocks, and how the pruning is shared between them."""

    name = "stages"

    def __init__(
        self,
        layout: TokenLayout,
        flops: Callable[[PruningSchedule], int],
        budget: FlopsBudget,
        choices: Mapping[str, tuple[str, ...]],
        count: int = 3,
    ) -> None:
        if not 1 <= count < layout.depth:
            raise SpaceError(f"space stages:{count}: {layout.model} has room for 1 to {layout.depth - 1} steps")
        self.count = count
        super().__init__(layout, flops, budget, choices)

    @property
    def _shape_text(self) -> str:
        return f"stages:{self.count}"

    def _shape(self) -> dict[str, Parameter]:
        places = {f"after_{i}": IntParameter(1, self.layout.depth - 1) for i in range(1, self.count + 1)}
        weights = {f"weight_{i}": FloatParameter(0.0, 1.0) for i in range(1, self.count + 1)}
        return {**places, **weights}

    def _decode(self, values: Mapping[str, Value]) -> list[tuple[int, float]]:
        pairs = [(int(values[f"after_{i}"]), float(values[f"weight_{i}"])) for i in range(1, self.count + 1)]
        return _normalised(pairs)

    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        if len(schedule.steps) > self.count:
            return None
        weights = _weights(schedule)
        last = schedule.steps[-1].after
        places: dict[str, Value] = {}
        for i in range(1, self.count + 1):  # steps that the schedule does not have weigh nothing
            used = i <= len(weights)
            places[f"after_{i}"] = schedule.steps[i - 1].after if used else last
            places[f"weight_{i}"] = weights[i - 1] if used else 0.0
        return places


class PerBlockSpace(SearchSpace):
    """A step after every block but the last, each with its share of the pruning; small ones vanish."""

    name = "per-block"
    _LEAST = 0.5  # weights below it are none, so that a random draw prunes after half of the blocks

    @property
    def _shape_text(self) -> str:
        return self.name

    def _shape(self) -> dict[str, Parameter]:
        return {f"weight_{i}": FloatParameter(0.0, 1.0) for i in range(1, self.layout.depth)}

    def _decode(self, values: Mapping[str, Value]) -> list[tuple[int, float]]:
        weights = [(i, float(values[f"weight_{i}"])) for i in range(1, self.layout.depth)]
        return _normalised([(i, max(0.0, w - self._LEAST) / (1 - self._LEAST)) for i, w in weights])

    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        found: dict[str, Value] = {f"weight_{i}": 0.0 for i in range(1, self.layout.depth)}
        for step, weight in zip(schedule.steps, _weights(schedule), strict=True):
            found[f"weight_{step.after}"] = self._LEAST + weight * (1 - self._LEAST)
        return found


# What a search varies of the method unless told otherwise: what becomes of a pruned token matters
# most, and which choice is best differs by model.
DEFAULT_CHOICES: dict[str, tuple[str, ...]] = {
    "importance": ("clip",),
    "alignment": ("on",),
    "reduction": ("prune",),
    "context": ("drop", "conv", "freeze"),
}
SPACES: dict[str, type[SearchSpace]] = {space.name: space for space in (StagesSpace, PerBlockSpace)}


def make_space(
    text: str, layout: TokenLayout, flops: Callable[[PruningSchedule], int], budget: FlopsBudget
) -> SearchSpace:
    """Make a space from its text: `stages`, `stages:4`, `per-block`, with choices of the method appended.

    Choices are written as in `stages:3;context=drop,conv;importance=clip,l2`.

    Args:
        text: see above.
        layout: the model's.
        flops: what a schedule costs.
        budget: what a candidate may cost.

    Raises:
        SpaceError: the text is malformed.
        UnknownNameError: there is no such space.
        BudgetError: no schedule of the space is cheap enough.
    """
    head, *options = (part.strip() for part in text.split(";"))
    name, _, count = head.partition(":")
    if name not in SPACES:
        raise UnknownNameError("space", name, SPACES)
    choices = _parse_choices(text, options)
    if not count:
        return SPACES[name](layout, flops, budget, choices)
    if name != StagesSpace.name or not count.isdecimal() or len(count) > 4:
        raise SpaceError(f"space {text!r}: expected stages:K with a whole number K, such as stages:3")
    return StagesSpace(layout, flops, budget, choices, int(count))


def _parse_choices(text: str, options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    choices = dict(DEFAULT_CHOICES)
    seen = set()
    for option in options:
        name, separator, listed = (piece.strip() for piece in option.partition("="))
        names = tuple(dict.fromkeys(piece.strip() for piece in listed.split(",")))
        if not separator or name not in METHOD_CHOICES:
            raise SpaceError(f"space {text!r}: {option!r} is not one of {', '.join(METHOD_CHOICES)}=CHOICE,…")
        if name in seen:
            raise SpaceError(f"space {text!r}: {name} stands twice")
        seen.add(name)
        try:
            choices[name] = tuple(getattr(PruningMethod(**{name: choice}), name) for choice in names)
        except ScheduleError as error:
            raise SpaceError(f"space {text!r}: {error}") from None
    return choices


def _normalised(pairs: Shape) -> list[tuple[int, float]]:
    """Add up the weights of each block and scale the largest to 1; if all are 0, they share alike."""
    sums: dict[int, float] = {}
    for after, weight in sorted(pairs):
        sums[after] = sums.get(after, 0.0) + weight
    most = max(sums.values())
    if most <= 0:
        return [(after, 1.0) for after in sums]
    return [(after, weight / most) for after, weight in sums.items() if weight > 0]


def _earlier(shape: Shape) -> list[tuple[int, float]]:
    return _normalised([(max(1, after - 1), weight) for after, weight in shape])


def _weights(schedule: PruningSchedule) -> list[float]:
    logs = [log(step.keep) for step in schedule.steps]
    return [value / min(logs) for value in logs]
