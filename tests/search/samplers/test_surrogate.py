"""The process is a regression that can be checked by hand, and its kernel sees schedules as models do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.samplers.surrogate import Features, GaussianProcess, TrainingData
from spaces import PruningSchedule, Stage, TokenLayout

LAYOUT = TokenLayout("model", (28, 28), (Stage(3, 10, 10), Stage(3, 5, 5)))
CHOICES = {"importance": ("clip",), "context": ("drop", "conv", "freeze"), "reduction": ("prune", "merge")}
FEATURES = Features(LAYOUT, CHOICES)


def point(text: str) -> np.ndarray:
    return FEATURES(PruningSchedule.parse(text))


def distance(one: str, other: str) -> float:
    return float(np.linalg.norm(point(one) - point(other)))


def test_the_first_group_is_the_logarithm_of_the_share_left_after_each_block() -> None:
    assert [group.stop - group.start for group in FEATURES.groups] == [6, 18, 12]  # what is fixed is no feature
    assert len(FEATURES.depths) == len(point("")) == 36
    left = point("2:0.5,5:0.2")[FEATURES.groups[0]] * np.sqrt(6)
    assert np.exp(left) == pytest.approx([1, 0.5, 0.5, 1, 0.2, 0.2])  # the second stage has its grid back


@given(
    blocks=st.sets(st.integers(1, 6)),
    keeps=st.lists(st.floats(0.05, 0.95), min_size=6, max_size=6),
    contexts=st.lists(st.sampled_from(CHOICES["context"]), min_size=6, max_size=6),
)
def test_what_is_gone_is_shared_out_among_the_contexts(
    blocks: set[int], keeps: list[float], contexts: list[str]
) -> None:
    """Of tokens that a stage has lost, each step of it took its part; where a stage begins, all are back."""
    steps = zip(sorted(blocks), (round(keep, 2) for keep in keeps), contexts, strict=False)
    found = FEATURES(PruningSchedule.of(list(steps))) * np.sqrt(6)
    parts = found[FEATURES.groups[1]].reshape(3, 6)
    assert (parts >= -1e-12).all()
    assert parts.sum(0) == pytest.approx(1 - np.exp(found[FEATURES.groups[0]]))


def test_a_step_behind_the_first_block_of_a_stage_is_counted_from_all_of_its_tokens() -> None:
    found = FEATURES(PruningSchedule.parse("2:0.5:drop,4:0.4:conv"))[FEATURES.groups[1]].reshape(3, 6) * np.sqrt(6)
    assert found[0] == pytest.approx([0, 0.5, 0.5, 0, 0, 0])
    assert found[1] == pytest.approx([0, 0, 0, 0.6, 0.6, 0.6])


def test_methods_differ_by_as_much_as_they_prune() -> None:
    assert point("")[FEATURES.groups[1]] == pytest.approx(0)
    weak = distance("5:0.9;context=drop", "5:0.9;context=freeze")
    strong = distance("1:0.2;context=drop", "1:0.2;context=freeze")
    assert 0 < weak < strong
    assert distance("1:0.5", "1:0.51") < distance("1:0.5", "1:0.6") < distance("1:0.5", "1:0.6;context=conv")


def observations(count: int, seed: int = 0, noise: float = 1e-4) -> TrainingData:
    """A smooth function of random schedules, with a trend along the basis."""
    rng = np.random.default_rng(seed)
    schedules = [
        PruningSchedule.of([(1, a), (3, b), (5, c)]) for a, b, c in rng.uniform(0.1, 1.0, (count, 3)).round(2)
    ]
    points = np.stack([FEATURES(schedule) for schedule in schedules])
    flops = points[:, :6].sum(1)
    values = np.sin(4 * points[:, 0]) + points[:, 2] ** 2 + 0.5 * flops
    return TrainingData(points, np.stack([np.ones(count), flops], 1), values, np.full(count, noise))


def fitted(observed: TrainingData, tries: int = 30) -> GaussianProcess:
    process = GaussianProcess(FEATURES)
    process.fit(observed, tries)
    return process


def test_it_learns_a_smooth_function() -> None:
    process, unseen = fitted(observations(60)), observations(40, seed=1)
    mean, deviation = process.predict(unseen.points, unseen.basis)
    errors = np.abs(mean - unseen.values)
    assert errors.mean() < 0.1 * unseen.values.std()
    assert (errors < 3 * deviation + 0.02).mean() > 0.9


def test_it_agrees_with_the_plain_formulas() -> None:
    """Regression with a flat prior over the mean's weights, written with the inverse of the whole covariance."""
    seen, unseen = observations(12, noise=0.3), observations(5, seed=1)
    process = fitted(seen, tries=0)

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        r = np.sqrt(5) * np.linalg.norm(one[:, None] - other[None], axis=2)
        return (1 + r + r**2 / 3) * np.exp(-r)

    inverse = np.linalg.inv(kernel(seen.points, seen.points) + np.diag(np.exp(-1.0) * seen.noise + 2e-3))
    across = kernel(seen.points, unseen.points)
    weights = np.linalg.solve(seen.basis.T @ inverse @ seen.basis, seen.basis.T @ inverse @ seen.values)
    residual = seen.values - seen.basis @ weights
    rest = unseen.basis.T - seen.basis.T @ inverse @ across
    spread = np.linalg.solve(seen.basis.T @ inverse @ seen.basis, rest)
    variance = 1 - np.einsum("ij,ik,kj->j", across, inverse, across) + (rest * spread).sum(0)
    mean, deviation = process.predict(unseen.points, unseen.basis)
    assert mean == pytest.approx(unseen.basis @ weights + across.T @ inverse @ residual, rel=1e-3)
    assert deviation**2 == pytest.approx(residual @ inverse @ residual / 12 * variance, rel=1e-3)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(3, 30))
def test_what_is_known_is_certain_and_what_is_far_is_not(seed: int, count: int) -> None:
    observed = observations(count, seed)
    process = fitted(observed, tries=4)
    mean, deviation = process.predict(observed.points, observed.basis)
    assert np.isfinite(mean).all() and (deviation > 0).all()
    far = np.full((1, len(FEATURES.depths)), 5.0)
    assert (process.predict(far, np.ones((1, 2)))[1] > deviation).all()


def test_noise_is_believed_less() -> None:
    clear, noisy = observations(20), observations(20, noise=50.0)
    spreads = [np.abs(fitted(o, 0).predict(o.points, o.basis)[0] - o.values).mean() for o in (clear, noisy)]
    assert spreads[0] < 0.1 * spreads[1]


def test_what_is_imagined_is_expected_and_forgotten_by_the_next_fit() -> None:
    observed, new = observations(20), observations(3, seed=1)
    process = fitted(observed, 4)
    mean, before = process.predict(new.points, new.basis)
    process.imagine(new.points, new.basis)
    again, after = process.predict(new.points, new.basis)
    assert again == pytest.approx(mean, abs=0.05)
    assert (after < before).all()
    process.fit(observed, 0)
    assert process.predict(new.points, new.basis)[1] == pytest.approx(before)
