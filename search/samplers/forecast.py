"""What a candidate is expected to gain, from forecasts of the objectives.

FLOPs are known before a candidate runs; every other objective has a Gaussian process. With FLOPs and one other
objective, the expected improvement of the front's hypervolume has a closed form. Any other set of objectives is
weighted at random, anew for each proposal, as in ParEGO.
"""

from collections.abc import Sequence

import numpy as np

from search.samplers.acquisition import expected_hypervolume_gain, expected_scalar_gain
from search.samplers.surrogate import Array, Features, GaussianProcess, TrainingData
from search.samplers.trial_history import EncodedSchedule, Observation

SHARES = ("top1", "agreement")  # objectives that are shares of images, and so have binomial noise
UNKNOWN_NOISE = 0.01  # variance where it is not known, as a share of the objective's variance over all observations
MAX_OBSERVATIONS = 500  # that a process is conditioned on
EFFORT = 500_000  # covariance entries that may be computed for each proposal to adapt the hyperparameters
MAX_TRIES = 24  # changes of the hyperparameters for each proposal
# The reference point of the hypervolume lies beyond the budget by this share of it. The dearest point then gains
# about as much as its neighbours do; a reference far beyond draws proposals to the upper end. For a front of H + 1
# points it is 1 / H in Ishibuchi et al., "How to Specify a Reference Point in Hypervolume Calculation" (2018).
BEYOND = 0.1


class Forecast:
    """What one objective is expected to be: a Gaussian process about a mean that is linear in FLOPs.

    Args:
        features: of schedules.
        share: whether the objective is a share of images in 0..1.
    """

    def __init__(self, features: Features, share: bool) -> None:
        self._process, self._share = GaussianProcess(features), share
        self._centre, self._scale = 0.0, 1.0

    def fit(
        self,
        schedules: Sequence[EncodedSchedule],
        values: Array,
        images: Array,
        pending: Sequence[EncodedSchedule] = (),
    ) -> None:
        """Condition on measured values.

        Args:
            schedules: n of them.
            values: (n,), more is better.
            images: (n,) that each value was measured on; NaN where that is not known.
            pending: schedules under way, which are then imagined to come out as expected.
        """
        self._centre, self._scale = float(values.mean()), max(float(values.std()), 1e-9)
        noise = self._noise(values, images)
        observed = TrainingData(*_inputs(schedules), (values - self._centre) / self._scale, noise)
        self._process.fit(observed, tries=min(MAX_TRIES, EFFORT // len(values) ** 2))
        if pending:
            self._process.imagine(*_inputs(pending))

    def predict(self, schedules: Sequence[EncodedSchedule]) -> tuple[Array, Array]:
        """Return mean and standard deviation, (m,) each."""
        mean, deviation = self._process.predict(*_inputs(schedules))
        return self._centre + self._scale * mean, self._scale * deviation

    def _noise(self, values: Array, images: Array) -> Array:
        """Return each value's variance as a share of that of all values, up to a factor that the process learns.

        A share p of n images has the binomial p (1 - p) / n, kept above 0 where all images are right or none.
        """
        spread = values * (1 - values) + 1 / images if self._share else np.full(len(values), self._scale**2)
        noise = spread / images / self._scale**2
        return np.where(noise > 0, noise, UNKNOWN_NOISE)  # NaN: no images; below 0: the share was told in per cent


class ExpectedGain:
    """What candidates are expected to gain; keeps what the processes learned of their hyperparameters.

    Args:
        features: of schedules.
        objectives: names from `OBJECTIVES`.
        budget: the least and the most FLOPs of a candidate, as shares of the dense model's.
    """

    def __init__(self, features: Features, objectives: Sequence[str], budget: tuple[float, float]) -> None:
        self._objectives = tuple(objectives)
        self._dearest = budget[1] + BEYOND * (budget[1] - budget[0])
        self._forecasts = {name: Forecast(features, name in SHARES) for name in objectives if name != "flops"}

    def __call__(
        self,
        candidates: Sequence[EncodedSchedule],
        observations: Sequence[Observation],
        pending: Sequence[EncodedSchedule],
        rng: np.random.Generator,
    ) -> Array:
        """Return the expected gain of m candidates, (m,), given what was measured and what is under way.

        Args:
            candidates: m of them.
            observations: at least one, in the order in which they were made.
            pending: schedules under way.
            rng: of the weights where objectives are weighted.
        """
        names = self._objectives
        means, deviations = self._predict([*candidates, *pending], observations, pending)
        scores = np.array([observation.scores for observation in observations])
        known = np.concatenate([scores, means[len(candidates) :]])
        means, deviations = means[: len(candidates)], deviations[: len(candidates)]
        low = known.min(0)
        if len(names) == 2 and "flops" in names:
            cost, score = names.index("flops"), 1 - names.index("flops")
            floor = 0.0 if names[score] in SHARES else float(low[score])
            front = np.stack([-known[:, cost], known[:, score]], 1)
            reference = (self._dearest, floor)
            return expected_hypervolume_gain(-means[:, cost], means[:, score], deviations[:, score], front, reference)
        span = np.maximum(known.max(0) - low, 1e-9)
        weights = rng.dirichlet(np.ones(len(names)))
        return expected_scalar_gain((means - low) / span, deviations / span, weights, (known - low) / span, rng)

    def _predict(
        self,
        schedules: Sequence[EncodedSchedule],
        observations: Sequence[Observation],
        pending: Sequence[EncodedSchedule],
    ) -> tuple[Array, Array]:
        """Return mean and standard deviation of each objective, (m, objectives) each; FLOPs are certain."""
        means = np.empty((len(schedules), len(self._objectives)))
        deviations = np.zeros_like(means)
        used = thinned(observations)
        images = np.array([np.nan if o.images is None else o.images for o in used])
        for i, name in enumerate(self._objectives):
            if name == "flops":
                means[:, i] = [-schedule.flops for schedule in schedules]
                continue
            forecast = self._forecasts[name]
            forecast.fit([o.encoded for o in used], np.array([o.scores[i] for o in used]), images, pending)
            means[:, i], deviations[:, i] = forecast.predict(schedules)
        return means, deviations


def thinned(observations: Sequence[Observation]) -> Sequence[Observation]:
    """Return at most `MAX_OBSERVATIONS`: the latest, near which proposals are made, and some of all earlier ones."""
    if len(observations) <= MAX_OBSERVATIONS:
        return observations
    latest = MAX_OBSERVATIONS // 2
    older, kept = observations[:-latest], observations[-latest:]
    return [*(older[i] for i in np.linspace(0, len(older) - 1, MAX_OBSERVATIONS - latest).astype(int)), *kept]


def _inputs(schedules: Sequence[EncodedSchedule]) -> tuple[Array, Array]:
    """Return the features, (n, features), and the basis of the mean, 1 and FLOPs, (n, 2)."""
    flops = np.array([schedule.flops for schedule in schedules])
    return np.stack([schedule.features for schedule in schedules]), np.stack([np.ones_like(flops), flops], 1)
