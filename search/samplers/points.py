"""Points of a search space: drawn at random, or changed a little."""

from collections.abc import Mapping

import numpy as np

from spaces.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter, Value

Point = dict[str, Value]

ANEW = 0.1  # how often a change forgets the old value
EXCHANGED = 0.3  # how often a change begins with some values of another point


def random_point(parameters: Mapping[str, Parameter], rng: np.random.Generator) -> Point:
    """Draw each parameter uniformly."""
    return {name: _random(parameter, rng) for name, parameter in parameters.items()}


def changed_point(
    values: Mapping[str, Value],
    other: Mapping[str, Value],
    parameters: Mapping[str, Parameter],
    rng: np.random.Generator,
) -> Point:
    """Return a neighbour of a point: a place a block or two away, a weight or target shifted, another choice.

    Args:
        values: the point.
        other: another good one, of which it may take values first.
        parameters: of the space that both belong to.
        rng: of all chances.
    """
    found = dict(values)
    if rng.random() < EXCHANGED:
        found.update({name: other[name] for name in parameters if rng.random() < 0.5})
    names = list(parameters)
    for index in rng.choice(len(names), size=min(len(names), rng.geometric(0.5)), replace=False):
        name = names[index]
        found[name] = _changed(found[name], parameters[name], rng)
    return found


def _random(parameter: Parameter, rng: np.random.Generator) -> Value:
    match parameter:
        case FloatParameter(low, high):
            return float(rng.uniform(low, high))
        case IntParameter(low, high):
            return int(rng.integers(low, high, endpoint=True))
        case ChoiceParameter(choices):
            return choices[rng.integers(len(choices))]


def _changed(value: Value, parameter: Parameter, rng: np.random.Generator) -> Value:
    if rng.random() < ANEW or isinstance(parameter, ChoiceParameter):
        return _random(parameter, rng)
    if isinstance(parameter, FloatParameter):
        return float(
            np.clip(
                float(value) + rng.normal(0.0, 0.15 * (parameter.high - parameter.low)), parameter.low, parameter.high
            )
        )
    return int(np.clip(int(value) + rng.choice([-2, -1, 1, 2]), parameter.low, parameter.high))
