"""Samplers by name."""

from collections.abc import Sequence

from search.config import SAMPLERS
from search.samplers.base import Sampler
from search.samplers.gp_sampler import GpSampler
from search.samplers.optuna_sampler import OptunaSampler
from spaces.errors import UnknownNameError
from spaces.space import SearchSpace


def make_sampler(
    name: str, space: SearchSpace, objectives: Sequence[str], *, seed: int, trials: int, recorded: int = 0
) -> Sampler:
    """Make a sampler that knows nothing yet.

    Args:
        name: from `SAMPLERS`.
        space: whose points are proposed.
        objectives: names from `OBJECTIVES`.
        seed: the same seed, evaluations and answers give the same proposals.
        trials: how many evaluations the study shall have.
        recorded: evaluations that the study has; after a resume the seed alone would repeat itself.

    Raises:
        UnknownNameError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)
    if name == GpSampler.name:
        return GpSampler(space, objectives, seed=seed, recorded=recorded)
    return OptunaSampler(name, space, objectives, seed=seed, trials=trials, recorded=recorded)
