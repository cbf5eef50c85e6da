"""The samplers by name. Each is a sampler of Optuna, and the driver gets it through one adapter."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from search.config import SAMPLERS
from search.samplers.adapter import StudySampler
from search.samplers.base import Sampler
from search.samplers.gp_sampler import GpSampler
from spaces.errors import UnknownNameError
from spaces.space import SearchSpace

MAX_POPULATION = 50  # of NSGA-II
MIN_GENERATIONS = 5  # that a search of few trials still goes through


@dataclass(frozen=True)
class _Request:
    """What a sampler is made for; see `make_sampler`."""

    space: SearchSpace
    objectives: Sequence[str]
    seed: int
    trials: int
    recorded: int

    @property
    def optuna_seed(self) -> int:
        """One number of the seed and the recorded evaluations."""
        return int(np.random.SeedSequence([self.seed, self.recorded]).generate_state(1)[0])


def make_sampler(
    name: str, space: SearchSpace, objectives: Sequence[str], *, seed: int, trials: int, recorded: int = 0
) -> Sampler:
    """Make a sampler that knows nothing yet.

    Args:
        name: from `SAMPLERS`.
        space: whose points are proposed.
        objectives: names from `OBJECTIVES`.
        seed: the same seed, evaluations and answers give the same proposals.
        trials: how many evaluations the study shall have, which sizes NSGA-II's population and TPE's start.
        recorded: evaluations that the study has; after a resume the seed alone would repeat itself.

    Raises:
        UnknownNameError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)
    request = _Request(space, objectives, seed, trials, recorded)
    return StudySampler(name, _FACTORIES[name](request), space, objectives)


def population_size(trials: int) -> int:
    """Return NSGA-II's population: small enough that few trials still make several generations.

    Example:
        >>> [population_size(trials) for trials in (10, 100, 1000)]
        [4, 20, 50]
    """
    return max(4, min(MAX_POPULATION, trials // MIN_GENERATIONS))


def _gp(request: _Request) -> BaseSampler:
    return GpSampler(request.space, request.objectives, seed=[request.seed, request.recorded])


def _nsga2(request: _Request) -> BaseSampler:
    return NSGAIISampler(population_size=population_size(request.trials), seed=request.optuna_seed)


def _tpe(request: _Request) -> BaseSampler:
    with warnings.catch_warnings():  # options that Optuna calls experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        # The constant liar counts running trials as bad, so that several workers do not try the same. Parameters are
        # drawn independently: with several objectives, Optuna's joint draw soon tries one end of the front only.
        return TPESampler(
            n_startup_trials=max(4, min(10, request.trials // 4)), constant_liar=True, seed=request.optuna_seed
        )


def _random(request: _Request) -> BaseSampler:
    return RandomSampler(seed=request.optuna_seed)


_FACTORIES: Mapping[str, Callable[[_Request], BaseSampler]] = {
    "gp": _gp,
    "nsga2": _nsga2,
    "tpe": _tpe,
    "random": _random,
}
