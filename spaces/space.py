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
from spaces.strength import LEAST_KEEP, STRENGTHS, Place, Pruning, Prunings, Shape

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
        each: whether each step chooses its own context.
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
        each: bool = False,
    ) -> None:
        if not layout.places:
            raise SpaceError(f"space {self.name}: {layout.model} has no block that works on what a step leaves")
        self.layout, self.choices, self.flops = layout, dict(choices), flops
        self.each = each and len(self.choices["context"]) > 1
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
        prefixes = {"context": EACH} if self.each else {}
        return ";".join(
            [self._shape_text, *(f"{k}={prefixes.get(k, '')}{','.join(self.choices[k])}" for k in stated)]
        )

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What a searcher has to choose, by name."""
        found: dict[str, Parameter] = dict(self._shape())
        found["target"] = FloatParameter(0.0, 1.0)
        for name, choices in self._open.items():
            found[name] = ChoiceParameter(choices)
        return found

    @property
    def _open(self) -> dict[str, tuple[str, ...]]:
        """What there is to choose beside the shape and the target, by parameter."""
        found = {name: choices for name, choices in self.choices.items() if len(choices) > 1}
        if self.each:
            contexts = found.pop("context")
            found |= {f"context_{i}": contexts for i in self._step_numbers}
        return found

    def schedule(self, values: Mapping[str, Value]) -> PruningSchedule:
        """Return the schedule that the parameters' values stand for; it costs at most `limit`."""
        chosen = {k: str(values[k]) if k in values else v[0] for k, v in self.choices.items()}
        method = self._affordable(self._method(chosen))
        least = self.least_of(method)
        target = least + float(values["target"]) * (self.limit - least)
        shape = self._decode(values)
        if self.each:
            found = self._reached(shape, target, method)
            if found.flops <= self.limit:
                return found.schedule
            shape = [place._replace(context=None) for place in shape]  # in their own contexts it is out of reach
        return self.weakest(shape, target, method)

    def _method(self, chosen: Mapping[str, str]) -> PruningMethod:
        """Return the method by which targets are spread: in the cheapest context if each step chooses its own."""
        contexts = self.choices["context"] if self.each else (chosen["context"],)
        methods = [PruningMethod(**{**chosen, "context": context}) for context in contexts]
        return min(methods, key=self._floors.__getitem__)

    def weakest(self, shape: Shape, target: float, method: PruningMethod) -> PruningSchedule:
        """Return the weakest pruning of `shape` that costs at most `target` FLOPs, in canonical ratios.

        Where even the strongest costs more, the steps move forward, a block at a time within their stages; where the
        limit is then still out of reach, the places of the cheapest schedules are taken: the first of every stage.

        Args:
            shape: the logarithms of the keep ratios are as its weights.
            target: at least what the space reaches with `method`.
            method: how tokens are pruned.
        """
        found = self._reached(shape, target, method)
        if found.flops > self.limit:
            found = Prunings(self.layout, self.flops, self._firsts(), method).weakest(target)
        return found.schedule

    def _reached(self, shape: Shape, target: float, method: PruningMethod) -> Pruning:
        """Return the weakest pruning within the target, or the strongest with the steps as early as can be."""
        while True:
            found = Prunings(self.layout, self.flops, shape, method).weakest(target)
            earlier = self._earlier(shape)
            if found.flops <= target or {place.after for place in earlier} == {place.after for place in shape}:
                return found
            shape = earlier

    def values(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        """Return values that (nearly) give a schedule back; None if the space cannot express it."""
        if schedule.dense:
            return None
        chosen = {**schedule.method.as_dict(), "context": schedule.contexts[0]}
        if any(chosen[name] not in choices for name, choices in self.choices.items()):
            return None
        if not set(schedule.contexts) <= set(self.choices["context"] if self.each else [chosen["context"]]):
            return None
        if any(step.after not in self.layout.places or step.keep < LEAST_KEEP for step in schedule.steps):
            return None
        shape = self._encode(schedule)
        cost = self.flops(schedule)
        least = self.least_of(self._method(chosen))
        if shape is None or not least <= cost <= self.limit:
            return None
        found = {**shape, "target": (cost - least) / max(1, self.limit - least)}
        contexts = self._encode_contexts(schedule) if self.each else {}
        return found | contexts | {name: chosen[name] for name in self._open if name not in contexts}

    def _firsts(self) -> list[Place]:
        """Return the first place of every stage that has one."""
        places = self.layout.places
        firsts = {self.layout.stage_of(place): place for place in reversed(places)}
        return [Place(place) for place in sorted(firsts.values())]

    def _earlier(self, shape: Shape) -> list[Place]:
        """Move each step a block forward, as far as its stage goes."""
        places = self.layout.places
        return _normalised([p._replace(after=p.after - 1 if p.after - 1 in places else p.after) for p in shape])

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
        return Prunings(self.layout, self.flops, self._firsts(), method).at(STRENGTHS).schedule

    @property
    @abstractmethod
    def _shape_text(self) -> str:
        """The part of `text` that says where tokens may be dropped."""

    @abstractmethod
    def _shape(self) -> dict[str, Parameter]:
        """Parameters for the places of the steps and how they share the pruning."""

    @property
    @abstractmethod
    def _step_numbers(self) -> Sequence[int]:
        """The numbers in the names of the parameters that each step has."""

    @abstractmethod
    def _decode(self, values: Mapping[str, Value]) -> list[Place]:
        """Return the shape: blocks of `layout.places`, weights in (0, 1], one of them 1."""

    @abstractmethod
    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        """Return the values of `_shape` for a schedule with steps, or None."""

    @abstractmethod
    def _encode_contexts(self, schedule: PruningSchedule) -> dict[str, Value]:
        """Return the values of the steps' own contexts."""


class StagesSpace(SearchSpace):
    """K steps: after which blocks, and how the pruning is shared between them."""

    name = "stages"

    def __init__(
        self,
        layout: TokenLayout,
        flops: Callable[[PruningSchedule], int],
        budget: FlopsBudget,
        choices: Mapping[str, tuple[str, ...]],
        each: bool = False,
        count: int = 3,
    ) -> None:
        if not 1 <= count <= len(layout.places):
            raise SpaceError(f"space stages:{count}: {layout.model} has room for 1 to {len(layout.places)} steps")
        self.count = count
        super().__init__(layout, flops, budget, choices, each)

    @property
    def _shape_text(self) -> str:
        return f"stages:{self.count}"

    def _shape(self) -> dict[str, Parameter]:
        # A place is told by its number among all places; without stages that is the block's.
        places = {f"after_{i}": IntParameter(1, len(self.layout.places)) for i in self._step_numbers}
        weights = {f"weight_{i}": FloatParameter(0.0, 1.0) for i in range(1, self.count + 1)}
        return {**places, **weights}

    @property
    def _step_numbers(self) -> range:
        return range(1, self.count + 1)

    def _decode(self, values: Mapping[str, Value]) -> list[Place]:
        blocks = {i: self.layout.places[int(values[f"after_{i}"]) - 1] for i in self._step_numbers}
        return _normalised(
            [
                Place(block, float(values[f"weight_{i}"]), _text(values.get(f"context_{i}")))
                for i, block in blocks.items()
            ]
        )

    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        if len(schedule.steps) > self.count:
            return None
        weights = _weights(schedule)
        numbers = [self.layout.places.index(step.after) + 1 for step in schedule.steps]
        places: dict[str, Value] = {}
        for i in range(1, self.count + 1):  # steps that the schedule does not have weigh nothing
            used = i <= len(weights)
            places[f"after_{i}"] = numbers[i - 1] if used else numbers[-1]
            places[f"weight_{i}"] = weights[i - 1] if used else 0.0
        return places

    def _encode_contexts(self, schedule: PruningSchedule) -> dict[str, Value]:
        last = len(schedule.steps) - 1
        return {f"context_{i}": schedule.contexts[min(i - 1, last)] for i in self._step_numbers}


class PerBlockSpace(SearchSpace):
    """A step after every block but the last of a stage, each with its share of the pruning; small ones vanish."""

    name = "per-block"
    _LEAST = 0.5  # weights below it are none, so that a random draw prunes after half of the blocks

    @property
    def _shape_text(self) -> str:
        return self.name

    def _shape(self) -> dict[str, Parameter]:
        return {f"weight_{i}": FloatParameter(0.0, 1.0) for i in self._step_numbers}

    @property
    def _step_numbers(self) -> tuple[int, ...]:
        return self.layout.places

    def _decode(self, values: Mapping[str, Value]) -> list[Place]:
        weights = {i: max(0.0, float(values[f"weight_{i}"]) - self._LEAST) for i in self._step_numbers}
        return _normalised(
            [Place(i, w / (1 - self._LEAST), _text(values.get(f"context_{i}"))) for i, w in weights.items()]
        )

    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        found: dict[str, Value] = {f"weight_{i}": 0.0 for i in self._step_numbers}
        for step, weight in zip(schedule.steps, _weights(schedule), strict=True):
            found[f"weight_{step.after}"] = self._LEAST + weight * (1 - self._LEAST)
        return found

    def _encode_contexts(self, schedule: PruningSchedule) -> dict[str, Value]:
        own = {step.after: context for step, context in zip(schedule.steps, schedule.contexts, strict=True)}
        return {f"context_{i}": own.get(i, self.choices["context"][0]) for i in self._step_numbers}


# What a search varies of the method unless told otherwise: what becomes of a pruned token matters
# most, and which choice is best differs by model.
DEFAULT_CHOICES: dict[str, tuple[str, ...]] = {
    "importance": ("clip",),
    "alignment": ("on",),
    "reduction": ("prune",),
    "context": ("drop", "conv", "freeze"),
}
EACH = "each:"  # before the contexts that each step chooses from
SPACES: dict[str, type[SearchSpace]] = {space.name: space for space in (StagesSpace, PerBlockSpace)}


def make_space(
    text: str,
    layout: TokenLayout,
    flops: Callable[[PruningSchedule], int],
    budget: FlopsBudget,
    offers: Mapping[str, Sequence[str]] | None = None,
) -> SearchSpace:
    """Make a space from its text: `stages`, `stages:4`, `per-block`, with choices of the method appended.

    Choices are written as in `stages:3;context=drop,conv;importance=clip,l2`. With `context=each:drop,conv` each step
    chooses its own.

    Args:
        text: see above.
        layout: the model's.
        flops: what a schedule costs.
        budget: what a candidate may cost.
        offers: what the model can do, by choice of the method; None for everything.

    Raises:
        SpaceError: the text is malformed, or asks for what the model does not offer.
        UnknownNameError: there is no such space.
        BudgetError: no schedule of the space is cheap enough.
    """
    head, *options = (part.strip() for part in text.split(";"))
    name, _, count = head.partition(":")
    if name not in SPACES:
        raise UnknownNameError("space", name, SPACES)
    each = any(option.replace(" ", "").startswith(f"context={EACH}") for option in options)
    choices = _parse_choices(text, options, layout.model, METHOD_CHOICES if offers is None else offers)
    if not count:
        return SPACES[name](layout, flops, budget, choices, each)
    if name != StagesSpace.name or not count.isdecimal() or len(count) > 4:
        raise SpaceError(f"space {text!r}: expected stages:K with a whole number K, such as stages:3")
    return StagesSpace(layout, flops, budget, choices, each, int(count))


def _parse_choices(
    text: str, options: Sequence[str], model: str, offers: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    choices = {name: tuple(c for c in usual if c in offers[name]) for name, usual in DEFAULT_CHOICES.items()}
    seen = set()
    for option in options:
        name, separator, listed = (piece.strip() for piece in option.partition("="))
        if name == "context":
            listed = listed.removeprefix(EACH).strip()
        names = tuple(dict.fromkeys(piece.strip() for piece in listed.split(",")))
        if not separator or name not in METHOD_CHOICES:
            raise SpaceError(f"space {text!r}: {option!r} is not one of {', '.join(METHOD_CHOICES)}=CHOICE,…")
        if name in seen:
            raise SpaceError(f"space {text!r}: {name} stands twice")
        seen.add(name)
        try:
            if EACH in option and "zeros" in names and len(names) > 1:
                raise ScheduleError("the context zeros cannot be mixed with others from step to step")
            choices[name] = tuple(getattr(PruningMethod(**{name: choice}), name) for choice in names)
        except ScheduleError as error:
            raise SpaceError(f"space {text!r}: {error}") from None
        if missing := [choice for choice in choices[name] if choice not in offers[name]]:
            raise SpaceError(f"space {text!r}: {name}={missing[0]}: {model} offers {', '.join(offers[name])}")
    return choices


def _normalised(places: Shape) -> list[Place]:
    """Add up the weights of each block and scale the largest to 1; if all are 0, they share alike.

    Of several contexts of one block, that of the largest weight counts.
    """
    found: dict[int, Place] = {}
    for place in sorted(places, key=lambda place: (place.after, -place.weight)):
        before = found.get(place.after)
        found[place.after] = place if before is None else before._replace(weight=before.weight + place.weight)
    most = max(place.weight for place in found.values())
    if most <= 0:
        return [place._replace(weight=1.0) for place in found.values()]
    return [place._replace(weight=place.weight / most) for place in found.values() if place.weight > 0]


def _text(value: Value | None) -> str | None:
    return None if value is None else str(value)


def _weights(schedule: PruningSchedule) -> list[float]:
    logs = [log(step.keep) for step in schedule.steps]
    return [value / min(logs) for value in logs]
