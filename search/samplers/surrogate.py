"""What a candidate will score, as far as the others tell: a Gaussian process over schedules, in numpy.

Schedules are alike if they leave alike shares of the tokens after alike blocks, by the same method. So the process
lives on `Features` of schedules and not on the parameters of a space, of which very different ones may give one
schedule. Regression as in Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5:
a Matérn-5/2 kernel, a mean that is linear in some basis (section 2.7), hyperparameters by marginal likelihood.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces import PruningSchedule, TokenLayout

Array = NDArray[np.floating[Any]]

_NUGGET = 2e-3  # of the kernel's scale: what no smooth function of the features explains
_STEP = 0.5  # by which the logarithm of a hyperparameter is tried larger and smaller


class Features:
    """Schedules as points: what the kernel takes to be near, in one place.

    The first group holds the logarithm of the share of tokens that is left after each block: to keep half of few
    tokens matters as to keep half of many. Then comes a group for each choice of the
    method that is open, which holds the share that is gone, in the slots of the option that was chosen. So two
    methods lie as far apart as they prune, and where nothing is pruned they are one.

    Args:
        layout: the model's.
        choices: the method's choices by name, as `SearchSpace.choices`.

    Attributes:
        groups: a slice of the features for each group.
        depths: (features,) where in the model each feature stands, from -1 to 1.
    """

    def __init__(self, layout: TokenLayout, choices: Mapping[str, tuple[str, ...]]) -> None:
        self._layout = layout
        self._choices = {name: options for name, options in choices.items() if len(options) > 1}
        self._grids = np.array([stage.tokens for stage in layout.stages for _ in range(stage.blocks)], dtype=float)
        sizes = [1, *(len(options) for options in self._choices.values())]
        ends = layout.depth * np.cumsum([0, *sizes])
        self.groups = [slice(int(start), int(end)) for start, end in pairwise(ends)]
        self.depths = np.tile(np.linspace(-1.0, 1.0, layout.depth), sum(sizes))

    def __call__(self, schedule: PruningSchedule) -> Array:
        """Return the schedule's point, of shape (features,)."""
        left = np.array(self._layout.tokens(schedule)) / self._grids
        chosen = schedule.method.as_dict()
        parts = [np.log(left)]
        for name, options in self._choices.items():
            if name == "context":
                gone = self._gone_by_context(schedule, left)
                parts += [gone.get(option, np.zeros_like(left)) for option in options]
            else:
                parts += [(1.0 - left) * (chosen[name] == option) for option in options]
        point: Array = np.concatenate(parts) / np.sqrt(len(left))
        return point

    def _gone_by_context(self, schedule: PruningSchedule, left: Array) -> dict[str, Array]:
        """Return the share that is gone after each block, by the context of the step that took it."""
        gone: dict[str, Array] = {}
        before = np.append(1.0, left[:-1])
        before[[0, *self._layout.ends[:-1]]] = 1.0  # a stage begins with all of its tokens
        taken = before - left  # by the step after each block
        for step, context in zip(schedule.steps, schedule.contexts, strict=True):
            end = next(end for end in self._layout.ends if step.after <= end)
            mine = gone.setdefault(context, np.zeros_like(left))
            mine[step.after - 1 : end] += taken[step.after - 1]
        return gone


@dataclass(frozen=True)
class Observed:
    """What a process has seen.

    Attributes:
        points: (n, features).
        basis: (n, b), the functions that make up the mean.
        values: (n,).
        noise: (n,), each value's variance, but for a common factor.
    """

    points: Array
    basis: Array
    values: Array
    noise: Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class _Posterior:
    """The observations in the light of some hyperparameters; covariances are shares of `scale`."""

    observed: Observed
    points: Array  # (n, features), divided by their lengths
    lower: Array  # inverse of the covariance's Cholesky factor
    basis: Array  # lower @ basis
    spread: Array  # of the mean's weights
    weights: Array
    solved: Array
    scale: float
    likelihood: float


@dataclass
class GaussianProcess:
    """A process over features, which takes in observations and keeps what it learned of its hyperparameters.

    These are logarithms: a length for each group of features, the slope of all lengths over the model's depth (how
    much a token counts differs from early to late blocks), and the factor of the noise.
    """

    features: Features
    theta: Array = field(init=False)
    _posterior: _Posterior = field(init=False, repr=False)
    _turn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.theta = self._middle()

    def fit(self, observed: Observed, tries: int) -> None:
        """Take in all that is observed, and try `tries` changes of the hyperparameters, one after another."""
        best = self._condition(observed, self.theta)
        for _ in range(tries):
            index, sign = divmod(self._turn, 2)
            change = np.zeros_like(self.theta)
            change[index] = (1 - 2 * sign) * _STEP
            other = self._condition(observed, self.theta + change)
            if other.likelihood > best.likelihood:
                best, self.theta = other, self.theta + change
            else:
                self._turn = (self._turn + 1) % (2 * len(self.theta))
        self._posterior = best

    def imagine(self, points: Array, basis: Array) -> None:
        """Take in (m, features) points as if they had the values that are expected of them, until the next `fit`."""
        known = self._posterior.observed
        means, _ = self.predict(points, basis)
        observed = Observed(
            np.concatenate([known.points, points]),
            np.concatenate([known.basis, basis]),
            np.concatenate([known.values, means]),
            np.concatenate([known.noise, np.full(len(points), known.noise.mean())]),
        )
        self._posterior = self._condition(observed, self.theta)

    def predict(self, points: Array, basis: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation, without noise, at (m, features) points with their (m, b) basis."""
        post = self._posterior
        across = post.lower @ _matern(post.points, points / self._lengths(self.theta))
        rest = basis - across.T @ post.basis
        variance = 1.0 - (across**2).sum(0) + ((rest @ post.spread) * rest).sum(1)
        return basis @ post.weights + across.T @ post.solved, np.sqrt(post.scale * np.maximum(variance, 1e-9))

    def _middle(self) -> Array:
        return np.array([0.0] * len(self.features.groups) + [0.0, -1.0])

    def _lengths(self, theta: Array) -> Array:
        lengths = np.empty_like(self.features.depths)
        for group, length in zip(self.features.groups, theta, strict=False):
            lengths[group] = length
        slope: Array = theta[-2] * self.features.depths
        return np.exp(lengths + slope)

    def _condition(self, observed: Observed, theta: Array) -> _Posterior:
        count = len(observed)
        points = observed.points / self._lengths(theta)
        covariance = _matern(points, points)
        covariance[np.diag_indices(count)] += np.exp(theta[-1]) * observed.noise + _NUGGET
        lower = np.linalg.cholesky(covariance)
        inverse = np.linalg.inv(lower)
        basis, values = inverse @ observed.basis, inverse @ observed.values
        spread = np.linalg.inv(basis.T @ basis + 1e-6 * np.eye(basis.shape[1]))
        weights = spread @ (basis.T @ values)
        rest = values - basis @ weights
        scale = max(float(rest @ rest) / count, 1e-12)
        prior = -0.5 * float(((theta - self._middle()) ** 2).sum())
        likelihood = prior - 0.5 * count * np.log(scale) - float(np.log(np.diag(lower)).sum())
        return _Posterior(observed, points, inverse, basis, spread, weights, rest, scale, likelihood)


def _matern(one: Array, other: Array) -> Array:
    """Return the Matérn-5/2 kernel between (n, d) and (m, d) points of unit length."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2.0 * one @ other.T
    distance = np.sqrt(5.0 * np.maximum(squares, 0.0))
    kernel: Array = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    return kernel
