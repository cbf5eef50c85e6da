"""The model-based sampler: it knows the FLOPs, and learns the rest by Gaussian processes over schedules.

FLOPs are known before a candidate runs, so only the other objectives are uncertain. With FLOPs and one other, what a
candidate is expected to add to the front's hypervolume has a closed form; otherwise objectives are weighed at random,
anew for each proposal. Of a pool of points, drawn at random or changed a little from good ones, the best is proposed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from results import Evaluation
from search.config import OBJECTIVES
from search.samplers.acquisition import expected_hypervolume_gain, expected_scalar_gain
from search.samplers.base import Draw, scores
from search.samplers.points import Point, changed_point, random_point
from search.samplers.surrogate import Array, Features, GaussianProcess, Observed
from spaces import PruningSchedule
from spaces.parameters import Value
from spaces.space import SearchSpace

SHARES = ("top1", "agreement")  # objectives that are shares of the images
STARTUP = 6  # results before the processes are asked
FIRST, RANDOM, CHANGED = 192, 32, 64  # new points in the pool: at first, and for each proposal
POOL = 768  # points that are kept for the next proposal
PARENTS = 24  # points of which changed ones are made: of the front, and of the pool
MOST = 500  # results that a process takes in
EFFORT = 500_000  # entries of the covariances that may be made for each proposal to adapt the hyperparameters


@dataclass(frozen=True)
class Candidate:
    """A schedule with all that is known of it beforehand; `flops` is the share of the dense model's."""

    values: Point | None
    schedule: PruningSchedule
    flops: float
    features: Array


@dataclass(frozen=True)
class Result:
    """What a candidate came to: its scores by objective, more is better, on so many images."""

    candidate: Candidate
    scores: tuple[float, ...]
    images: int


class Forecast:
    """What one objective is expected to be: a Gaussian process about a mean that is linear in FLOPs.

    Args:
        features: of schedules.
        share: whether the objective is a share of the images, whose noise is known.
    """

    def __init__(self, features: Features, share: bool) -> None:
        self._process, self._share = GaussianProcess(features), share
        self._centre, self._scale = 0.0, 1.0

    def fit(
        self, candidates: Sequence[Candidate], values: Array, images: Array, pending: Sequence[Candidate]
    ) -> None:
        """Take in (n,) values that were measured on (n,) images; candidates under way count with what is expected."""
        self._centre, self._scale = float(values.mean()), max(float(values.std()), 1e-9)
        spread = values * (1 - values) + 1 / images if self._share else np.full(len(values), self._scale**2)
        noise = spread / images / self._scale**2
        observed = Observed(*_inputs(candidates), (values - self._centre) / self._scale, noise)
        self._process.fit(observed, tries=min(24, EFFORT // len(values) ** 2))
        if pending:
            self._process.imagine(*_inputs(pending))

    def predict(self, candidates: Sequence[Candidate]) -> tuple[Array, Array]:
        """Return mean and standard deviation, (m,) each."""
        mean, deviation = self._process.predict(*_inputs(candidates))
        return self._centre + self._scale * mean, self._scale * deviation


class GpSampler:
    """A `Sampler` by Gaussian processes.

    Args:
        space: whose points are proposed.
        objectives: names from `OBJECTIVES`.
        seed: the same seed, evaluations and answers give the same proposals.
        recorded: evaluations that the study has; after a resume the seed alone would repeat itself.
    """

    name = "gp"

    def __init__(self, space: SearchSpace, objectives: Sequence[str], *, seed: int, recorded: int = 0) -> None:
        self._space, self._objectives = space, tuple(objectives)
        self._parameters = space.parameters
        self._rng = np.random.default_rng([seed, recorded])
        self._features = Features(space.layout, space.choices)
        self._forecasts = {
            name: Forecast(self._features, name in SHARES) for name in self._objectives if name != "flops"
        }
        self._results: dict[PruningSchedule, Result] = {}
        self._front: list[Result] = []
        self._pending: dict[PruningSchedule, Candidate] = {}
        self._closed: set[PruningSchedule] = set()  # not proposed (again)
        self._pool: dict[PruningSchedule, Candidate] = {}

    def restore(self, evaluations: Iterable[Evaluation]) -> None:
        """Take in recorded evaluations, also of schedules that the space cannot express."""
        for evaluation in evaluations:
            known = evaluation.parameters.keys() == self._parameters.keys()
            self._learn(
                self._candidate(evaluation.schedule, dict(evaluation.parameters) if known else None), evaluation
            )

    def ask(self, values: Mapping[str, Value] | None = None) -> Draw:
        """Propose a point; with `values` that very point, as if the sampler had drawn it."""
        if values is not None:
            point = dict(values)
        elif len(self._results) < STARTUP:
            point = random_point(self._parameters, self._rng)
        else:
            point = self._best()
        candidate = self._at(point)
        self._pending[candidate.schedule] = candidate
        return Draw(point, candidate)

    def state(self, draw: Draw) -> dict[str, Any]:
        """Return what `restore` needs beside the point itself: nothing."""
        return {}

    def tell(self, draw: Draw, evaluation: Evaluation | None) -> None:
        """Say what came of a point; None if nothing did."""
        candidate: Candidate = draw.mark
        if self._pending.get(candidate.schedule) is candidate:  # another draw of it may be the one under way
            del self._pending[candidate.schedule]
        self._closed.add(candidate.schedule)
        if evaluation is not None:
            self._learn(candidate, evaluation)

    def _learn(self, candidate: Candidate, evaluation: Evaluation) -> None:
        self._closed.add(candidate.schedule)
        found = scores(evaluation, self._objectives)
        if found is not None:
            signed = [s if OBJECTIVES[name] else -s for name, s in zip(self._objectives, found, strict=True)]
            if "flops" in self._objectives:
                signed[self._objectives.index("flops")] = -candidate.flops
            result = Result(candidate, tuple(signed), max(1, evaluation.images))
            self._results[candidate.schedule] = result
            if not any(_dominates(other, result) for other in self._front):
                self._front = [*(other for other in self._front if not _dominates(result, other)), result]

    def _candidate(self, schedule: PruningSchedule, values: Point | None) -> Candidate:
        share = self._space.flops(schedule) / self._space.dense_flops
        return Candidate(values, schedule, share, self._features(schedule))

    def _at(self, values: Point) -> Candidate:
        return self._candidate(self._space.schedule(values), values)

    def _best(self) -> Point:
        """Return the point of the pool that promises most."""
        points = [random_point(self._parameters, self._rng) for _ in range(RANDOM if self._pool else FIRST)]
        if parents := self._parents():
            one, other = self._rng.integers(len(parents), size=(2, CHANGED))
            points += [
                changed_point(parents[i], parents[j], self._parameters, self._rng)
                for i, j in zip(one, other, strict=True)
            ]
        known = self._closed | self._pending.keys()
        for values in points:
            schedule = self._space.schedule(values)
            if schedule not in self._pool and schedule not in known:
                self._pool[schedule] = self._candidate(schedule, values)
        candidates = [candidate for schedule, candidate in self._pool.items() if schedule not in known]
        if not candidates:
            return points[0]
        order = [candidates[i] for i in np.argsort(-self._gains(candidates), kind="stable")]
        self._pool = {candidate.schedule: candidate for candidate in order[:POOL]}
        best: Point | None = order[0].values
        assert best is not None  # whatever is in the pool came from a point
        return best

    def _parents(self) -> list[Point]:
        """Return the points of the front, and the most promising of the pool."""
        found = [*(result.candidate for result in self._front), *islice(self._pool.values(), PARENTS)]
        return [candidate.values for candidate in found if candidate.values is not None]

    def _gains(self, candidates: Sequence[Candidate]) -> Array:
        """Return what each candidate is expected to gain, given what was measured and what is under way."""
        names, pending, results = self._objectives, list(self._pending.values()), list(self._results.values())
        used = _spread(results)
        every = [*candidates, *pending]
        means, deviations = np.empty((len(every), len(names))), np.zeros((len(every), len(names)))
        for i, name in enumerate(names):
            if name == "flops":
                means[:, i] = [-candidate.flops for candidate in every]
                continue
            values, images = np.array([r.scores[i] for r in used]), np.array([r.images for r in used])
            self._forecasts[name].fit([r.candidate for r in used], values, images, pending)
            means[:, i], deviations[:, i] = self._forecasts[name].predict(every)
        known = np.concatenate([np.array([result.scores for result in results]), means[len(candidates) :]])
        means, deviations = means[: len(candidates)], deviations[: len(candidates)]
        low = known.min(0)
        if len(names) == 2 and "flops" in names:
            cost, score = names.index("flops"), 1 - names.index("flops")
            floor = 0.0 if names[score] in SHARES else float(low[score])
            front = np.stack([-known[:, cost], known[:, score]], 1)
            return expected_hypervolume_gain(
                -means[:, cost], means[:, score], deviations[:, score], front, (1.0, floor)
            )
        span = np.maximum(known.max(0) - low, 1e-9)
        weights = self._rng.dirichlet(np.ones(len(names)))
        return expected_scalar_gain((means - low) / span, deviations / span, weights, (known - low) / span, self._rng)


def _dominates(one: Result, other: Result) -> bool:
    return one.scores != other.scores and all(a >= b for a, b in zip(one.scores, other.scores, strict=True))


def _inputs(candidates: Sequence[Candidate]) -> tuple[Array, Array]:
    """Return the features, (n, features), and the basis of the mean, (n, 2)."""
    flops = np.array([candidate.flops for candidate in candidates])
    return np.stack([candidate.features for candidate in candidates]), np.stack([np.ones_like(flops), flops], 1)


def _spread(results: Sequence[Result]) -> Sequence[Result]:
    """Return at most `MOST` results: the latest, near which proposals are made, and some of all the earlier ones."""
    if len(results) <= MOST:
        return results
    older, latest = results[: -MOST // 2], results[-MOST // 2 :]
    return [*(older[i] for i in np.linspace(0, len(older) - 1, MOST - len(latest)).astype(int)), *latest]
