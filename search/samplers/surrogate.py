"""The surrogate model: Gaussian process regression over schedules, in numpy.

Two schedules are similar if they leave similar shares of the tokens after similar blocks by the same method. So the
process is defined over `Features` of schedules, and not over the parameters of a space, of which very different ones
may give the same schedule. The regression follows Rasmussen and Williams, Gaussian Processes for Machine Learning
(2006): a Matérn-5/2 kernel (equation 4.17), a mean that is linear in a basis (section 2.7), and hyperparameters that
maximise the marginal likelihood (section 5.4).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces import PruningSchedule, TokenLayout

Array = NDArray[np.floating[Any]]

_NUGGET = 2e-3  # share of the kernel's variance that no smooth function of the features explains
_STEP = 0.5  # by which the logarithm of a hyperparameter is changed


class Features:
    """Schedules as vectors, between which the kernel measures distances.

    The first group of features is the logarithm of the share of tokens that is left after each block, so that halving
    few tokens counts as much as halving many. Each open choice of the method adds a group, with the share that is
    gone in the slots of the chosen option and 0 in those of the others. So two methods lie as far apart as they
    prune, and coincide where nothing is pruned.

    Args:
        layout: of the model.
        choices: the method's choices by name, as `SearchSpace.choices`.

    Attributes:
        groups: a slice of the features for each group.
        depths: (features,), each feature's position in the model, from -1 (first block) to 1 (last).

    Example:
        >>> from spaces import Stage
        >>> layout = TokenLayout("model", (16, 16), (Stage(4, 10, 10),))
        >>> features = Features(layout, {"context": ("drop",)})
        >>> (features(PruningSchedule.parse("2:0.5")) * 2).round(2)  # scaled by 1 / √blocks
        array([ 0.  , -0.69, -0.69, -0.69])
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
        """Return the features of a schedule, (features,)."""
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
        """Return the share that is gone after each block, (blocks,), by the context of the step that dropped it."""
        gone: dict[str, Array] = {}
        before = np.append(1.0, left[:-1])
        before[[0, *self._layout.ends[:-1]]] = 1.0  # each stage begins with its whole grid
        taken = before - left  # by the step after each block
        for step, context in zip(schedule.steps, schedule.contexts, strict=True):
            end = next(end for end in self._layout.ends if step.after <= end)
            mine = gone.setdefault(context, np.zeros_like(left))
            mine[step.after - 1 : end] += taken[step.after - 1]
        return gone


@dataclass(frozen=True)
class TrainingData:
    """What a process is conditioned on.

    Attributes:
        points: (n, features).
        basis: (n, b), the functions that the mean is linear in.
        values: (n,).
        noise: (n,), the variance of each value, up to a common factor.
    """

    points: Array
    basis: Array
    values: Array
    noise: Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class _Posterior:
    """A process conditioned on data under some hyperparameters; covariances are relative to `scale`."""

    observed: TrainingData
    points: Array  # (n, features), divided by the length scales
    whitening: Array  # (n, n), inverse of the covariance's Cholesky factor
    basis: Array  # (n, b), whitened
    weights_covariance: Array  # (b, b)
    weights: Array  # (b,), of the mean
    residual: Array  # (n,), whitened values less the mean
    scale: float  # variance of the kernel
    likelihood: float  # logarithm, up to a constant


@dataclass
class GaussianProcess:
    """A process over features that keeps its hyperparameters from one `fit` to the next.

    These are logarithms (`theta`): the length scale of each group of features, the slope of all length scales over
    the model's depth (early and late blocks differ in how much a token matters), and the factor of the noise.
    """

    features: Features
    theta: Array = field(init=False)
    _posterior: _Posterior = field(init=False, repr=False)
    _turn: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.theta = self._prior_mean()

    def fit(self, observed: TrainingData, tries: int) -> None:
        """Condition on all data, and try `tries` changes of single hyperparameters, keeping those that help."""
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
        """Condition on (m, features) points as if they had their expected values, until the next `fit`.

        This is the kriging believer (Ginsbourger, Le Riche and Carraro, 2010).
        """
        known = self._posterior.observed
        means, _ = self.predict(points, basis)
        observed = TrainingData(
            np.concatenate([known.points, points]),
            np.concatenate([known.basis, basis]),
            np.concatenate([known.values, means]),
            np.concatenate([known.noise, np.full(len(points), known.noise.mean())]),
        )
        self._posterior = self._condition(observed, self.theta)

    def predict(self, points: Array, basis: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation without noise, (m,) each.

        Args:
            points: (m, features).
            basis: (m, b).
        """
        post = self._posterior
        across = post.whitening @ _matern(post.points, points / self._lengths(self.theta))
        rest = basis - across.T @ post.basis
        variance = 1.0 - (across**2).sum(0) + ((rest @ post.weights_covariance) * rest).sum(1)
        return basis @ post.weights + across.T @ post.residual, np.sqrt(post.scale * np.maximum(variance, 1e-9))

    def _prior_mean(self) -> Array:
        return np.array([0.0] * len(self.features.groups) + [0.0, -1.0])

    def _lengths(self, theta: Array) -> Array:
        lengths = np.empty_like(self.features.depths)
        for group, length in zip(self.features.groups, theta, strict=False):
            lengths[group] = length
        slope: Array = theta[-2] * self.features.depths
        return np.exp(lengths + slope)

    def _condition(self, observed: TrainingData, theta: Array) -> _Posterior:
        count = len(observed)
        points = observed.points / self._lengths(theta)
        covariance = _matern(points, points)
        covariance[np.diag_indices(count)] += np.exp(theta[-1]) * observed.noise + _NUGGET
        lower = np.linalg.cholesky(covariance)
        whitening = np.linalg.inv(lower)
        basis, values = whitening @ observed.basis, whitening @ observed.values
        weights_covariance = np.linalg.inv(basis.T @ basis + 1e-6 * np.eye(basis.shape[1]))
        weights = weights_covariance @ (basis.T @ values)
        residual = values - basis @ weights
        scale = max(float(residual @ residual) / count, 1e-12)
        prior = -0.5 * float(((theta - self._prior_mean()) ** 2).sum())
        likelihood = prior - 0.5 * count * np.log(scale) - float(np.log(np.diag(lower)).sum())
        return _Posterior(
            observed, points, whitening, basis, weights_covariance, weights, residual, scale, likelihood
        )


def _matern(one: Array, other: Array) -> Array:
    """Return the Matérn-5/2 kernel between (n, d) and (m, d) points, (n, m), with length scale and variance 1."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None, :] - 2.0 * one @ other.T
    distance = np.sqrt(5.0 * np.maximum(squares, 0.0))
    kernel: Array = (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
    return kernel
