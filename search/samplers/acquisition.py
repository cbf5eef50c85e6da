"""Acquisition functions: what candidates are expected to gain over what is known. Pure functions over arrays."""

import numpy as np
import torch

from search.samplers.surrogate import Array

SAMPLES = 64  # of a Monte Carlo estimate


def expected_improvement(mean: Array, deviation: Array, height: Array) -> Array:
    """Return E[max(0, y - height)] for normal y; the arrays broadcast.

    Jones, Schonlau and Welch, Efficient Global Optimization of Expensive Black-Box Functions (1998), equation 15.

    Example:
        >>> expected_improvement(np.array([0.0]), np.array([1.0]), np.array([0.0])).round(4)
        array([0.3989])
    """
    u = (mean - height) / deviation
    density = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    below: Array = torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(u))).numpy()
    gain: Array = deviation * (u * below + density)
    return gain


def expected_hypervolume_gain(
    cost: Array, mean: Array, deviation: Array, front: Array, reference: tuple[float, float]
) -> Array:
    """Return the expected hypervolume improvement of m candidates of known cost and uncertain score, (m,).

    A score y at cost c adds the area between y and the front's staircase, over the costs from c to the reference. So
    the expectation is a sum over the steps of the staircase: the step's width right of c, times the expected
    improvement over its height.

    Args:
        cost: (m,), less is better.
        mean, deviation: (m,) of the score, more is better.
        front: (n, 2) of (cost, score), in any order; dominated points do no harm.
        reference: (cost, score) that bounds the hypervolume.
    """
    end, floor = reference
    ordered = front[np.argsort(front[:, 0], kind="stable")]
    edges = np.concatenate([[-np.inf], ordered[:, 0], [end]])
    heights = np.maximum.accumulate(np.concatenate([[floor], ordered[:, 1]]))
    rises = np.flatnonzero(np.diff(heights, prepend=-np.inf) > 0)  # a step begins where the staircase rises
    starts, heights = np.minimum(edges[rises], end), heights[rises]
    ends = np.append(starts[1:], end)
    width = np.clip(ends - np.maximum(starts, cost[:, None]), 0.0, None)
    gain: Array = (width * expected_improvement(mean[:, None], deviation[:, None], heights)).sum(1)
    return gain


def expected_scalar_gain(
    means: Array, deviations: Array, weights: Array, known: Array, rng: np.random.Generator
) -> Array:
    """Return the expected gain of m candidates in a weighted Tchebycheff score, (m,), by Monte Carlo.

    Knowles, ParEGO (2006): the augmented Tchebycheff function, for objectives of which more is better.

    Args:
        means, deviations: (m, k) of the objectives, scaled to about 0 … 1, more is better; a deviation is 0 where the
            objective is known.
        weights: (k,), positive, of sum 1.
        known: (n, k), the objectives of the observations.
        rng: of the samples, which all candidates share.
    """

    def scalar(scores: Array) -> Array:
        weighted = weights * (scores - 1.0)  # distances to the ideal point, so that the worst objective counts
        found: Array = weighted.min(-1) + 0.05 * weighted.sum(-1)
        return found

    samples = rng.standard_normal((SAMPLES, 1, means.shape[1]))
    gains: Array = np.maximum(scalar(means + deviations * samples) - scalar(known).max(), 0.0).mean(0)
    return gains + 1e-9 * scalar(means)  # where no sample gains, the best mean wins
