"""Points of a search space: whether values are one, a random one, and a mutation of a good one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from spaces.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter, Value

Point = dict[str, Value]

CROSSOVER = 0.3  # probability that a mutation first takes some values from another point
RESAMPLE = 0.1  # probability that a mutated parameter forgets its old value
STEP = 0.15  # standard deviation of a mutated real number, as a share of its range
BLOCKS = (-2, -1, 1, 2)  # by which a mutated whole number moves


def point_in(values: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Point | None:
    """Return the values of the parameters; None if one is missing or out of its bounds. Other values are left out."""
    found = {name: values[name] for name in parameters if name in values and _within(values[name], parameters[name])}
    return found if len(found) == len(parameters) else None


def clipped_point(values: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the values with numbers moved into their bounds, which a division may leave by a rounding error."""
    clipped = dict(values)
    for name, parameter in parameters.items():
        if name in clipped and not isinstance(parameter, ChoiceParameter) and _is_number(clipped[name]):
            clipped[name] = min(max(clipped[name], parameter.low), parameter.high)
    return clipped


def random_point(parameters: Mapping[str, Parameter], rng: np.random.Generator) -> Point:
    """Draw each parameter uniformly."""
    return {name: _random(parameter, rng) for name, parameter in parameters.items()}


def mutated_point(
    values: Mapping[str, Value],
    other: Mapping[str, Value],
    parameters: Mapping[str, Parameter],
    rng: np.random.Generator,
) -> Point:
    """Return a neighbour of a point: a step one or two blocks away, a weight or target shifted, another choice.

    Args:
        values: the point.
        other: another good one, from which some values may be taken first.
        parameters: of the space that both belong to.
        rng: of all random decisions.
    """
    found = dict(values)
    if rng.random() < CROSSOVER:
        found.update({name: other[name] for name in parameters if rng.random() < 0.5})
    names = list(parameters)
    for index in rng.choice(len(names), size=min(len(names), rng.geometric(0.5)), replace=False):
        name = names[index]
        found[name] = _mutated(found[name], parameters[name], rng)
    return found


def _random(parameter: Parameter, rng: np.random.Generator) -> Value:
    match parameter:
        case FloatParameter(low, high):
            return float(rng.uniform(low, high))
        case IntParameter(low, high):
            return int(rng.integers(low, high, endpoint=True))
        case ChoiceParameter(choices):
            return choices[rng.integers(len(choices))]


def _mutated(value: Value, parameter: Parameter, rng: np.random.Generator) -> Value:
    if rng.random() < RESAMPLE or isinstance(parameter, ChoiceParameter):
        return _random(parameter, rng)
    low, high = parameter.low, parameter.high
    if isinstance(parameter, FloatParameter):
        return float(np.clip(float(value) + rng.normal(0.0, STEP * (high - low)), low, high))
    return int(np.clip(int(value) + rng.choice(BLOCKS), low, high))


def _within(value: Any, parameter: Parameter) -> bool:
    match parameter:
        case FloatParameter(low, high):
            return _is_number(value) and low <= value <= high
        case IntParameter(low, high):
            return _is_number(value) and low <= value <= high and value == int(value)
        case ChoiceParameter(choices):
            return value in choices


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
