"""The model-based sampler: Gaussian processes over schedules, as a sampler of Optuna.

Bayesian optimisation over a pool: points that are drawn at random or mutated from good ones are ranked by what they
are expected to gain, the best is proposed, and the next best stay in the pool for the next proposal.
"""

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from search.config import OBJECTIVES
from search.samplers.forecast import ExpectedGain
from search.samplers.points import Point, mutated_point, random_point
from search.samplers.suggest import directions, distributions
from search.samplers.surrogate import Features
from search.samplers.trial_history import EncodedSchedule, TrialHistory
from spaces import PruningSchedule
from spaces.errors import UnknownNameError, UsageError
from spaces.space import SearchSpace

STARTUP = 6  # observations before the processes are asked
REDRAWS = 20  # random points that are drawn before one that was tried is proposed again
FIRST, RANDOM, MUTATED = 192, 32, 64  # new points in the pool: at first, and for each proposal
POOL = 768  # points that are kept for the next proposal
PARENTS = 24  # points of the pool that mutations start from, beside those of the front


@dataclass
class _StudyModel:
    """What a sampler made of one study: caches, all of which can be computed anew from the trials."""

    history: TrialHistory
    gain: ExpectedGain
    pool: dict[PruningSchedule, EncodedSchedule] = field(default_factory=dict)


class GpSampler(BaseSampler):
    """Proposes schedules by Gaussian processes over what schedules do, and learns from the study's trials.

    FLOPs are known before a trial runs, so only the other objectives are modelled. It proposes values for the
    parameters of the space, which `suggest_schedule` turns into a schedule; any other parameter is drawn at random.

    A trial says by its user attribute `images` how many images its scores were measured on, from which the noise of
    `top1` and `agreement` follows; without it the noise is estimated. A trial that was stopped early may report an
    estimate, with the images that it ran. See `TrialHistory` for which trials count.

    Proposals depend on the seed, the study's trials and the proposals made before by this sampler. It may be shared
    by threads (`study.optimize(…, n_jobs=2)`): proposals then differ from each other, but no longer follow from the
    seed.

    Args:
        space: whose points are proposed.
        objectives: names from `OBJECTIVES`, in the order of the study's directions.
        seed: as `numpy.random.default_rng` takes it; None for a different one each time. Give each process that
            searches or resumes one study its own, so that random points do not repeat.

    Raises:
        UnknownNameError: there is no such objective.
        UsageError: by the first trial, if the study's directions are not those of the objectives.

    Example:
        >>> import optuna
        >>> from search.samplers.suggest import suggest_schedule
        >>> from spaces import FlopsBudget, Stage, TokenLayout
        >>> from spaces.space import make_space
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> layout = TokenLayout("model", (28, 28), (Stage(12, 7, 7),))
        >>> space = make_space("stages:2", layout, lambda s: sum(layout.worked_on(s)), FlopsBudget.parse("0.8"))
        >>> study = optuna.create_study(sampler=GpSampler(space, seed=0), directions=["maximize", "minimize"])
        >>> def objective(trial):
        ...     schedule = suggest_schedule(trial, space)
        ...     return 1 - sum((1 - s.keep) / s.after for s in schedule.steps), space.flops(schedule)
        >>> study.optimize(objective, n_trials=10)
        >>> all(flops <= space.limit for _, flops in (trial.values for trial in study.best_trials))
        True
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str] = ("top1", "flops"),
        *,
        seed: int | Sequence[int] | None = None,
    ) -> None:
        for name in objectives:
            if name not in OBJECTIVES:
                raise UnknownNameError("objective", name, OBJECTIVES)
        self._space, self._objectives = space, tuple(objectives)
        self._parameters, self._distributions = space.parameters, distributions(space)
        self._rng = np.random.default_rng(seed)
        independent_seed = None if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._independent = RandomSampler(seed=independent_seed)
        self._features = Features(space.layout, space.choices)
        self._model: _StudyModel | None = None
        self._study: weakref.ref[Study] | None = None
        self._lock = threading.Lock()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study whose directions are not those of the objectives."""
        if study.directions != directions(self._objectives):
            found, expected = (
                [direction.name.lower() for direction in each]
                for each in (study.directions, directions(self._objectives))
            )
            raise UsageError(
                f"the study's directions are {found}, but the sampler's objectives ({', '.join(self._objectives)}) "
                f"need {expected}: create the study with directions={expected}"
            )

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of the space's parameters."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a value for each parameter of the space."""
        with self._lock:
            model = self._model_of(study)
            history = model.history
            history.update(study)
            encoded = self._random(history) if len(history.observations) < STARTUP else self._best(model)
            history.propose(trial.number, encoded)
            return dict(encoded.values or {})

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter that is none of the space's at random."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Draw from an unpredictable seed from now on; Optuna asks for it in each thread of `n_jobs`."""
        with self._lock:
            self._rng = np.random.default_rng()
            self._independent.reseed_rng()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the caches and the lock, so that a study can be pickled with its sampler."""
        return {**vars(self), "_model": None, "_study": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with empty caches."""
        vars(self).update(state)
        self._lock = threading.Lock()

    def _model_of(self, study: Study) -> _StudyModel:
        """Return what was made of the study so far; a new model if the sampler served another one."""
        if self._model is None or self._study is None or self._study() is not study:
            history = TrialHistory(self._space, self._features, self._objectives)
            least, most = (flops / self._space.dense_flops for flops in (self._space.least, self._space.limit))
            gain = ExpectedGain(self._features, self._objectives, (least, most))
            self._model = _StudyModel(history, gain)
            self._study = weakref.ref(study)
        return self._model

    def _random(self, history: TrialHistory) -> EncodedSchedule:
        """Return a random point, if possible of a schedule that has not been tried."""
        for _ in range(REDRAWS):
            values = random_point(self._parameters, self._rng)
            schedule = self._space.schedule(values)
            if schedule not in history.closed and schedule not in history.pending:
                break
        return history.encode(schedule, values)

    def _best(self, model: _StudyModel) -> EncodedSchedule:
        """Return the point of the pool that is expected to gain most; one that was tried if there is no other."""
        history, tried = model.history, model.history.closed | model.history.pending.keys()
        points = self._new_points(model)
        for values in points:
            schedule = self._space.schedule(values)
            if schedule not in model.pool and schedule not in tried:
                model.pool[schedule] = history.encode(schedule, values)
        candidates = [encoded for schedule, encoded in model.pool.items() if schedule not in tried]
        if not candidates:
            return history.encode(self._space.schedule(points[0]), points[0])
        observations, pending = list(history.observations.values()), list(history.pending.values())
        gains = model.gain(candidates, observations, pending, self._rng)
        ranked: list[EncodedSchedule] = [candidates[i] for i in np.argsort(-gains, kind="stable")]
        model.pool = {encoded.schedule: encoded for encoded in ranked[:POOL]}
        return ranked[0]

    def _new_points(self, model: _StudyModel) -> list[Point]:
        """Return random points, and mutations of the front and of the best of the pool."""
        points = [random_point(self._parameters, self._rng) for _ in range(RANDOM if model.pool else FIRST)]
        good = [*(o.encoded for o in model.history.front), *islice(model.pool.values(), PARENTS)]
        parents = [encoded.values for encoded in good if encoded.values is not None]
        if parents:
            one, other = self._rng.integers(len(parents), size=(2, MUTATED))
            points += [
                mutated_point(parents[i], parents[j], self._parameters, self._rng)
                for i, j in zip(one, other, strict=True)
            ]
        return points
