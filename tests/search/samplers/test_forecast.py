"""Forecasts believe a score as far as its noise allows."""

import numpy as np
import pytest

from search.samplers.forecast import MAX_OBSERVATIONS, ExpectedGain, Forecast, thinned
from search.samplers.points import random_point
from search.samplers.surrogate import Array, Features
from search.samplers.trial_history import EncodedSchedule, Observation, TrialHistory
from tests.search import fakes

SPACE = fakes.space()
FEATURES = Features(SPACE.layout, SPACE.choices)


def schedules(count: int, seed: int = 0) -> list[EncodedSchedule]:
    history, rng = TrialHistory(SPACE, FEATURES, ("top1", "flops")), np.random.default_rng(seed)
    points = [random_point(SPACE.parameters, rng) for _ in range(count)]
    return [history.encode(SPACE.schedule(point), point) for point in points]


def top1(encoded: list[EncodedSchedule]) -> Array:
    return np.array([fakes.top1(one.schedule) for one in encoded])


def fitted(values: Array, images: Array, seen: list[EncodedSchedule], share: bool = True) -> Forecast:
    forecast = Forecast(FEATURES, share)
    forecast.fit(seen, values, images)
    return forecast


def test_an_estimate_on_few_images_counts_less() -> None:
    seen = schedules(20)
    worst = int(top1(seen).argmin())
    values = top1(seen)
    values[worst] = 1.0
    believed = []
    for images in (2, 300):
        counts = np.full(20, 300.0)
        counts[worst] = images
        believed.append(fitted(values, counts, seen).predict([seen[worst]])[0][0])
    assert believed[0] < believed[1]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_noise_that_is_not_known_is_estimated(scale: float) -> None:
    """Without numbers of images, or in per cent, forecasts are as good: the units of a score do not matter."""
    seen, unseen = schedules(40), schedules(40, seed=1)
    forecast = fitted(scale * top1(seen), np.full(40, np.nan), seen)
    mean, deviation = forecast.predict(unseen)
    assert np.abs(mean / scale - top1(unseen)).mean() < 0.3 * top1(unseen).std()
    assert (deviation > 0).all()


def test_a_known_noise_does_not_change_because_another_is_unknown() -> None:
    seen = schedules(20)
    counts = np.full(20, 300.0)
    counts[3] = np.nan
    mean, _ = fitted(top1(seen), counts, seen).predict(seen)
    assert np.abs(mean - top1(seen)).max() < 0.1


@pytest.mark.parametrize("objectives", [("top1", "flops"), ("loss", "latency"), ("agreement",)])
def test_what_is_under_way_gains_little(objectives: tuple[str, ...]) -> None:
    seen = schedules(12)
    observations = [
        Observation(one, tuple({"flops": -one.flops}.get(name, fakes.top1(one.schedule)) for name in objectives), 300)
        for one in seen
    ]
    gain, candidates = ExpectedGain(FEATURES, objectives, (0.4, 0.8)), schedules(30, seed=1)
    gains = gain(candidates, observations, [], np.random.default_rng(0))
    best = int(gains.argmax())
    again = gain(candidates, observations, [candidates[best]], np.random.default_rng(0))
    assert gains.shape == (30,)
    assert again[best] < gains[best]


def test_long_histories_are_thinned_out() -> None:
    one = schedules(1)[0]
    observations = [Observation(one, (float(i),), None) for i in range(3 * MAX_OBSERVATIONS)]
    assert thinned(observations[:MAX_OBSERVATIONS]) == observations[:MAX_OBSERVATIONS]
    kept = [int(observation.scores[0]) for observation in thinned(observations)]
    assert len(kept) == MAX_OBSERVATIONS
    assert kept == sorted(set(kept))
    assert (
        kept[0] == 0 and kept[-MAX_OBSERVATIONS // 2 :] == list(range(3 * MAX_OBSERVATIONS))[-MAX_OBSERVATIONS // 2 :]
    )
