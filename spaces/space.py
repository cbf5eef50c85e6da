"""Search spaces: a sampler's values in, a schedule within the FLOPs budget out, and back.

In every space a candidate is described by where tokens are dropped, by how the pruning is divided between these
steps, by the pruning method, and by a target: how many FLOPs it may cost, within the budget's range. The solver then
finds the weakest pruning that costs no more than the target. So no candidate exceeds the budget, and none has to be
rejected. Keep ratios are canonical (`ratios.py`), so schedules that compute the same have one hash.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import log

from spaces.budget import FlopsBudget
from spaces.errors import BudgetError, SpaceError
from spaces.layout import TokenLayout
from spaces.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter, Value
from spaces.schedule import METHOD_CHOICES, PruningMethod, PruningSchedule
from spaces.solver import LEAST_KEEP, BudgetSolver, Place, Shape, normalised
from spaces.space_spec import PER_BLOCK, STAGES, SpaceSpec


class SearchSpace(ABC):
    """The schedules of one model that a search may try under one budget.

    A sampler reads `parameters`, draws values, and calls `schedule`. Whatever the values within their bounds, the
    schedule costs at most `limit`. A space is pure: equal arguments make equal spaces in every process.

    Args:
        spec: what the space's text says.
        layout: the model's.
        flops: counts the FLOPs of a schedule.
        budget: the range of FLOPs.

    Attributes:
        choices: the allowed choices of the method by name; a single one is fixed.
        context_per_step: whether each step chooses its own context.
        solver: finds the strength of the pruning.

    Raises:
        SpaceError: the model has no place to prune.
        BudgetError: no schedule of the space is cheap enough.
    """

    def __init__(
        self, spec: SpaceSpec, layout: TokenLayout, flops: Callable[[PruningSchedule], int], budget: FlopsBudget
    ) -> None:
        if not layout.places:
            raise SpaceError(f"space {spec.kind}: {layout.model} cannot be pruned: every stage is a single block")
        self.layout, self.flops, self.choices = layout, flops, dict(spec.choices)
        self.context_per_step = spec.context_per_step
        self._spec = spec
        methods = [
            PruningMethod(**dict(zip(self.choices, row, strict=True))) for row in product(*self.choices.values())
        ]
        self.solver = BudgetSolver(layout, flops, budget, methods)
        if self.floor > self.limit:
            raise BudgetError(
                f"FLOPs budget {budget}: {self.limit:,} FLOPs, but the cheapest schedule of space {self.text!r} on "
                f"{layout.model} costs {self.floor:,}; raise it to {self.floor / self.dense_flops:.3f}"
            )

    @property
    def text(self) -> str:
        """The canonical text, from which `make_space` makes this space again."""
        return self._spec.text

    @property
    def dense_flops(self) -> int:
        """FLOPs of the dense model."""
        return self.solver.dense_flops

    @property
    def limit(self) -> int:
        """FLOPs that no candidate exceeds."""
        return self.solver.limit

    @property
    def least(self) -> int:
        """The lowest target: where the budget's range begins, or `floor` if that is higher."""
        return self.solver.least

    @property
    def floor(self) -> int:
        """FLOPs of the cheapest schedule in the space."""
        return self.solver.floor

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What a sampler has to choose, by name."""
        chosen = {name: ChoiceParameter(choices) for name, choices in self._open_choices.items()}
        return {**self._shape_parameters, "target": FloatParameter(0.0, 1.0), **chosen}

    def schedule(self, values: Mapping[str, Value]) -> PruningSchedule:
        """Return the schedule that values of the `parameters` describe; it costs at most `limit` FLOPs.

        >>> from spaces import FlopsBudget, Stage, TokenLayout
        >>> layout = TokenLayout("tiny", (28, 28), (Stage(blocks=12, height=7, width=7),))
        >>> flops = lambda schedule: 1000 * sum(layout.worked_on(schedule))
        >>> space = make_space("stages:2;context=drop", layout, flops, FlopsBudget(0.7))
        >>> values = {"after_1": 3, "after_2": 6, "weight_1": 1.0, "weight_2": 0.5, "target": 1.0}
        >>> schedule = space.schedule(values)
        >>> schedule.text, flops(schedule) <= space.limit
        ('3:0.67,6:0.82', True)
        """
        chosen = {name: str(values.get(name, choices[0])) for name, choices in self.choices.items()}
        method = self.solver.affordable(self._target_method(chosen))
        target = self.solver.target(float(values["target"]), method)
        return self.solver.weakest(self._decode(values), target, method)

    def values(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        """Return values whose schedule is this one or nearly so; None if the space cannot express it."""
        if schedule.dense or not self._allows(schedule):
            return None
        shape = self._encode(schedule)
        chosen = {**schedule.method.as_dict(), "context": schedule.contexts[0]}
        target = self.solver.share(self.flops(schedule), self._target_method(chosen))
        if shape is None or target is None:
            return None
        contexts = self._encode_contexts(schedule) if self.context_per_step else {}
        rest = {name: chosen[name] for name in self._open_choices if name not in contexts}
        return {**shape, "target": target, **contexts, **rest}

    def weakest(self, shape: Shape, target: float, method: PruningMethod) -> PruningSchedule:
        """Return the weakest pruning of a shape that costs at most `target` FLOPs; see `BudgetSolver.weakest`."""
        return self.solver.weakest(shape, target, method)

    @property
    def _open_choices(self) -> dict[str, tuple[str, ...]]:
        """The choices beside the shape and the target, by parameter."""
        found = {name: choices for name, choices in self.choices.items() if len(choices) > 1}
        if self.context_per_step:
            contexts = found.pop("context")
            found |= {f"context_{i}": contexts for i in self._step_numbers}
        return found

    def _target_method(self, chosen: Mapping[str, str]) -> PruningMethod:
        """Return the method whose FLOPs bound the target from below; if steps have own contexts, the cheapest one."""
        contexts = self.choices["context"] if self.context_per_step else (chosen["context"],)
        return self.solver.cheapest([PruningMethod(**{**chosen, "context": context}) for context in contexts])

    def _allows(self, schedule: PruningSchedule) -> bool:
        """Whether the schedule's method, contexts, places and keep ratios are those of this space."""
        contexts = set(schedule.contexts)
        chosen = {name: {choice} for name, choice in schedule.method.as_dict().items()} | {"context": contexts}
        return (
            all(chosen[name] <= set(choices) for name, choices in self.choices.items())
            and (self.context_per_step or len(contexts) == 1)
            and all(step.after in self.layout.places and step.keep >= LEAST_KEEP for step in schedule.steps)
        )

    @property
    @abstractmethod
    def _shape_parameters(self) -> dict[str, Parameter]:
        """The parameters of the steps' places and weights."""

    @property
    @abstractmethod
    def _step_numbers(self) -> Sequence[int]:
        """The numbers in the names of the parameters that each step has."""

    @abstractmethod
    def _decode(self, values: Mapping[str, Value]) -> list[Place]:
        """Return the shape that values describe."""

    @abstractmethod
    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        """Return the values of `_shape_parameters` for a schedule with steps, or None."""

    @abstractmethod
    def _encode_contexts(self, schedule: PruningSchedule) -> dict[str, Value]:
        """Return the values of the steps' own contexts."""


class StagesSpace(SearchSpace):
    """A number of steps: after which blocks each prunes, and how the pruning is divided between them.

    Raises:
        SpaceError: the model has fewer places to prune than the space has steps.
    """

    def __init__(
        self, spec: SpaceSpec, layout: TokenLayout, flops: Callable[[PruningSchedule], int], budget: FlopsBudget
    ) -> None:
        self.count, most = spec.steps or 0, len(layout.places)
        if most and not 1 <= self.count <= most:
            raise SpaceError(f"space {spec.kind}:{self.count}: {layout.model} has room for 1 to {most} steps")
        super().__init__(spec, layout, flops, budget)

    @property
    def _shape_parameters(self) -> dict[str, Parameter]:
        # `after_i` is a position in `layout.places`; in a model with one stage that is the block's number.
        places = {f"after_{i}": IntParameter(1, len(self.layout.places)) for i in self._step_numbers}
        weights = {f"weight_{i}": FloatParameter(0.0, 1.0) for i in self._step_numbers}
        return {**places, **weights}

    @property
    def _step_numbers(self) -> range:
        return range(1, self.count + 1)

    def _decode(self, values: Mapping[str, Value]) -> list[Place]:
        blocks = {i: self.layout.places[int(values[f"after_{i}"]) - 1] for i in self._step_numbers}
        return normalised(
            Place(block, float(values[f"weight_{i}"]), _own_context(values, i)) for i, block in blocks.items()
        )

    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        unused = self.count - len(schedule.steps)
        if unused < 0:
            return None
        positions = [self.layout.places.index(step.after) + 1 for step in schedule.steps]
        positions += [positions[-1]] * unused
        weights = [*_weights(schedule), *[0.0] * unused]
        found: dict[str, Value] = {}
        for i, position, weight in zip(self._step_numbers, positions, weights, strict=True):
            found |= {f"after_{i}": position, f"weight_{i}": weight}
        return found

    def _encode_contexts(self, schedule: PruningSchedule) -> dict[str, Value]:
        last = len(schedule.steps) - 1
        return {f"context_{i}": schedule.contexts[min(i - 1, last)] for i in self._step_numbers}


class PerBlockSpace(SearchSpace):
    """A weight for each block but the last of a stage; where it is low, no step follows the block."""

    _LOWEST = 0.5  # weights up to it mean no step, so that a random draw prunes after half of the blocks

    @property
    def _shape_parameters(self) -> dict[str, Parameter]:
        return {f"weight_{i}": FloatParameter(0.0, 1.0) for i in self._step_numbers}

    @property
    def _step_numbers(self) -> tuple[int, ...]:
        return self.layout.places

    def _decode(self, values: Mapping[str, Value]) -> list[Place]:
        weights = {i: max(0.0, float(values[f"weight_{i}"]) - self._LOWEST) for i in self._step_numbers}
        return normalised(Place(i, w / (1 - self._LOWEST), _own_context(values, i)) for i, w in weights.items())

    def _encode(self, schedule: PruningSchedule) -> dict[str, Value] | None:
        found: dict[str, Value] = {f"weight_{i}": 0.0 for i in self._step_numbers}
        for step, weight in zip(schedule.steps, _weights(schedule), strict=True):
            found[f"weight_{step.after}"] = self._LOWEST + weight * (1 - self._LOWEST)
        return found

    def _encode_contexts(self, schedule: PruningSchedule) -> dict[str, Value]:
        own = {step.after: context for step, context in zip(schedule.steps, schedule.contexts, strict=True)}
        return {f"context_{i}": own.get(i, self.choices["context"][0]) for i in self._step_numbers}


_SPACES: dict[str, type[SearchSpace]] = {STAGES: StagesSpace, PER_BLOCK: PerBlockSpace}


def make_space(
    text: str,
    layout: TokenLayout,
    flops: Callable[[PruningSchedule], int],
    budget: FlopsBudget,
    offers: Mapping[str, Sequence[str]] = METHOD_CHOICES,
) -> SearchSpace:
    """Make a space from its text: `stages`, `stages:4`, `per-block`, optionally with choices of the method.

    Choices are written as in `stages:3;context=drop,conv;importance=clip,l2`. With `context=each:drop,conv` each step
    chooses its own. The grammar is in `space_spec.py`.

    >>> from spaces import FlopsBudget, Stage, TokenLayout
    >>> layout = TokenLayout("tiny", (28, 28), (Stage(blocks=12, height=7, width=7),))
    >>> flops = lambda schedule: 1000 * sum(layout.worked_on(schedule))
    >>> space = make_space("stages;context=drop,conv", layout, flops, FlopsBudget.parse("0.5:0.7"))
    >>> space.text, space.least, space.limit
    ('stages:3;context=drop,conv', 294000, 411600)
    >>> sorted(space.parameters)
    ['after_1', 'after_2', 'after_3', 'context', 'target', 'weight_1', 'weight_2', 'weight_3']

    Args:
        text: see above.
        layout: the model's.
        flops: counts the FLOPs of a schedule.
        budget: the range of FLOPs.
        offers: the choices of the method that the model supports, by name.

    Raises:
        SpaceError: the text is malformed, or asks for what the model does not offer.
        UnknownNameError: there is no such space.
        BudgetError: no schedule of the space is cheap enough.
    """
    spec = SpaceSpec.parse(text, layout.model, offers)
    return _SPACES[spec.kind](spec, layout, flops, budget)


def _methods(choices: Mapping[str, Sequence[str]]) -> list[PruningMethod]:
    """Return the methods that can be composed of the choices."""
    return [PruningMethod(**dict(zip(choices, combined, strict=True))) for combined in product(*choices.values())]


def _own_context(values: Mapping[str, Value], step: int) -> str | None:
    name = f"context_{step}"
    return str(values[name]) if name in values else None


def _weights(schedule: PruningSchedule) -> list[float]:
    logs = [log(step.keep) for step in schedule.steps]
    return [value / min(logs) for value in logs]
