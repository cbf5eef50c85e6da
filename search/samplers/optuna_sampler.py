"""Optuna's samplers: NSGA-II, TPE and chance, over a study in memory that is fed from the store on start."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState, create_trial

from results import Evaluation
from search.config import OBJECTIVES
from search.samplers.base import Draw, scores
from spaces.parameters import ChoiceParameter, FloatParameter, IntParameter, Parameter, Value
from spaces.space import SearchSpace

LARGEST_POPULATION = 50
GENERATIONS = 5  # that a search of few trials shall have at least


class OptunaSampler:
    """A `Sampler` by Optuna.

    Args:
        name: `nsga2`, `tpe` or `random`.
        space: whose parameters are proposed.
        objectives: names from `OBJECTIVES`.
        seed: the same seed, evaluations and answers give the same proposals.
        trials: how many evaluations the study shall have, which sizes NSGA-II's population.
        recorded: evaluations that the study has; after a resume the seed alone would repeat itself.
    """

    def __init__(
        self, name: str, space: SearchSpace, objectives: Sequence[str], *, seed: int, trials: int, recorded: int = 0
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self._objectives = tuple(objectives)
        self._distributions = {key: _distribution(p) for key, p in space.parameters.items()}
        derived = int(np.random.SeedSequence([seed, recorded]).generate_state(1)[0])
        self._sampler = _SAMPLERS[name](derived, trials)
        self._study = optuna.create_study(
            sampler=self._sampler,
            directions=["maximize" if OBJECTIVES[objective] else "minimize" for objective in self._objectives],
        )

    def restore(self, evaluations: Iterable[Evaluation]) -> None:
        """Take in recorded evaluations, in the order they were made.

        Those without parameters (published schedules that the space cannot express) are left out, since
        Optuna learns nothing from a point outside its space.
        """
        trials = []
        for evaluation in evaluations:
            if evaluation.parameters.keys() != self._distributions.keys():
                continue
            found = scores(evaluation, self._objectives)
            trials.append(
                create_trial(
                    state=TrialState.FAIL if found is None else TrialState.COMPLETE,
                    values=found,
                    params=dict(evaluation.parameters),
                    distributions=dict(self._distributions),
                    system_attrs=dict(evaluation.sampler_state),
                )
            )
        self._study.add_trials(trials)

    def ask(self, values: Mapping[str, Value] | None = None) -> Draw:
        """Propose a point; with `values` that very point, as if the sampler had drawn it."""
        if values is not None:
            self._study.enqueue_trial(self._bounded(values))
        trial = self._study.ask(self._distributions)
        if values is not None and isinstance(self._sampler, NSGAIISampler):
            # Fixed parameters bypass the sampler, and a trial without a generation never breeds.
            self._sampler.get_trial_generation(self._study, self._frozen(trial))
        return Draw(dict(trial.params), trial)

    def state(self, draw: Draw) -> dict[str, Any]:
        """Return what `restore` needs beside the point itself, as JSON."""
        attrs = self._frozen(draw.mark).system_attrs
        return {key: value for key, value in attrs.items() if key != "fixed_params"}

    def tell(self, draw: Draw, evaluation: Evaluation | None) -> None:
        """Say what came of a point; None if nothing did."""
        found = None if evaluation is None else scores(evaluation, self._objectives)
        if found is None:
            self._study.tell(draw.mark, state=TrialState.FAIL)
        else:
            self._study.tell(draw.mark, found)

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _bounded(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Values that came out of a division may lie outside their bounds by a rounding error."""
        bounded: dict[str, Value] = {}
        for key, value in values.items():
            limits = self._distributions[key]
            if isinstance(limits, FloatDistribution | IntDistribution) and not isinstance(value, str):
                value = min(max(value, limits.low), limits.high)
            bounded[key] = value
        return bounded


def population_size(trials: int) -> int:
    """Return NSGA-II's population: small enough that few trials still make several generations."""
    return max(4, min(LARGEST_POPULATION, trials // GENERATIONS))


def _nsga2(seed: int, trials: int) -> BaseSampler:
    return NSGAIISampler(population_size=population_size(trials), seed=seed)


def _tpe(seed: int, trials: int) -> BaseSampler:
    with warnings.catch_warnings():  # options that optuna calls experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # The liar counts what is under way as bad, so that several workers do not try the same. Parameters are
        # drawn each for itself: of several objectives, Optuna's joint draw soon tries one end of the front only.
        return TPESampler(n_startup_trials=max(4, min(10, trials // 4)), constant_liar=True, seed=seed)


def _random(seed: int, trials: int) -> BaseSampler:
    return RandomSampler(seed=seed)


_SAMPLERS = {"nsga2": _nsga2, "tpe": _tpe, "random": _random}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, FloatParameter):
        return FloatDistribution(parameter.low, parameter.high)
    if isinstance(parameter, IntParameter):
        return IntDistribution(parameter.low, parameter.high)
    assert isinstance(parameter, ChoiceParameter)
    return CategoricalDistribution(parameter.choices)
