import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.samplers.points import mutated_point, random_point
from spaces.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter, Value

PARAMETERS: dict[str, Parameter] = {
    "after_1": IntParameter(1, 11),
    "weight_1": FloatParameter(0.0, 1.0),
    "target": FloatParameter(0.0, 1.0),
    "context": ChoiceParameter(("drop", "conv", "freeze")),
}


def belongs(value: Value, parameter: Parameter) -> bool:
    match parameter:
        case FloatParameter(low, high):
            return isinstance(value, float) and low <= value <= high
        case IntParameter(low, high):
            return isinstance(value, int) and low <= value <= high
        case ChoiceParameter(choices):
            return value in choices


@given(st.integers(0, 2**32))
def test_points_stay_in_the_space(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = random_point(PARAMETERS, rng), random_point(PARAMETERS, rng)
    for point in (one, other, mutated_point(one, other, PARAMETERS, rng)):
        assert list(point) == list(PARAMETERS)
        assert all(belongs(point[name], parameter) for name, parameter in PARAMETERS.items())
    assert one == random_point(PARAMETERS, np.random.default_rng(seed))


def test_a_change_is_small_and_reaches_every_parameter() -> None:
    rng = np.random.default_rng(0)
    one = random_point(PARAMETERS, rng)
    changed = [mutated_point(one, one, PARAMETERS, rng) for _ in range(300)]
    differing = [[name for name in PARAMETERS if point[name] != one[name]] for point in changed]
    assert sum(len(names) for names in differing) / len(changed) < 2
    assert {name for names in differing for name in names} == set(PARAMETERS)
    near = sum(abs(int(point["after_1"]) - int(one["after_1"])) <= 2 for point in changed)
    assert near > 0.9 * len(changed)


def test_a_change_may_take_from_another_point() -> None:
    rng = np.random.default_rng(0)
    one: dict[str, Value] = {"after_1": 1, "weight_1": 0.0, "target": 0.0, "context": "drop"}
    other: dict[str, Value] = {"after_1": 11, "weight_1": 1.0, "target": 1.0, "context": "freeze"}
    mixed = [mutated_point(one, other, PARAMETERS, rng) for _ in range(200)]
    both = [point for point in mixed if point["after_1"] == 11 and point["context"] == "drop"]
    assert both
