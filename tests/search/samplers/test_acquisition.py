"""Expected gains are what a simulation gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import hypervolume
from search.samplers.acquisition import expected_hypervolume_gain, expected_improvement, expected_scalar_gain

unit = st.floats(0.0, 1.0)


def gain(cost: float, score: float, front: list[tuple[float, float]]) -> float:
    reference = (1.0, 0.0)
    return hypervolume([*front, (cost, score)], reference) - hypervolume(front, reference)


@given(st.lists(st.tuples(unit, unit), max_size=6), unit, unit)
def test_without_uncertainty_it_is_the_gain_in_hypervolume(
    front: list[tuple[float, float]], cost: float, score: float
) -> None:
    found = expected_hypervolume_gain(
        np.array([cost]), np.array([score]), np.array([1e-9]), np.array(front).reshape(-1, 2), (1.0, 0.0)
    )
    assert found[0] == pytest.approx(gain(cost, score, front), abs=1e-6)


def test_it_is_the_mean_of_the_gains() -> None:
    front = [(0.3, 0.5), (0.5, 0.8), (0.6, 0.7), (0.8, 0.9)]
    draws = np.random.default_rng(0).normal(0.75, 0.1, 4000)
    for cost in (0.2, 0.4, 0.5, 0.7, 0.9):
        simulated = np.mean([gain(cost, y, front) for y in draws])
        found = expected_hypervolume_gain(
            np.array([cost]), np.array([0.75]), np.array([0.1]), np.array(front), (1.0, 0.0)
        )
        assert found[0] == pytest.approx(simulated, abs=3e-3)


@given(st.floats(-5, 5), st.floats(0.01, 3), st.floats(-5, 5))
def test_improvement_is_positive_and_grows_with_mean_and_uncertainty(
    mean: float, deviation: float, height: float
) -> None:
    def at(m: float, d: float) -> float:
        return float(expected_improvement(np.array([m]), np.array([d]), np.array([height]))[0])

    assert at(mean, deviation) >= max(0.0, mean - height) - 1e-9
    assert at(mean + 0.1, deviation) >= at(mean, deviation) - 1e-9
    assert at(mean, deviation * 1.5) >= at(mean, deviation) - 1e-9


def test_a_scalar_gain_prefers_what_beats_the_known() -> None:
    known = np.array([[0.5, 0.5, 0.5]])
    means = np.array([[0.4, 0.4, 0.4], [0.6, 0.6, 0.6], [0.9, 0.9, 0.9]])
    weights = np.array([0.3, 0.3, 0.4])
    gains = expected_scalar_gain(means, np.full((3, 3), 0.05), weights, known, np.random.default_rng(0))
    assert gains[0] < gains[1] < gains[2]
    certain = expected_scalar_gain(means[:1], np.zeros((1, 3)), weights, known, np.random.default_rng(0))
    unsure = expected_scalar_gain(means[:1], np.full((1, 3), 0.3), weights, known, np.random.default_rng(0))
    assert certain[0] <= 0 < unsure[0]
