"""The Pareto front and the hypervolume in any number of dimensions. Pure functions over numbers.

A point has one number for each objective; `maximise` says for each objective whether higher is better. The default
is (FLOPs, top-1): FLOPs are minimised, top-1 is maximised.

One point dominates another if it is no worse in every objective and better in at least one.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import le, mul

Point = Sequence[float]


def pareto_front(points: Sequence[Point], maximise: Sequence[bool] = (False, True)) -> list[int]:
    """Return the indices of the points that no other point dominates, best in the first objective first.

    Of points that are equal in every objective, the first in the sequence is on the front. A point with a NaN is
    never on the front and dominates nothing. In two dimensions the front is strictly monotonic: with the default,
    FLOPs and top-1 both rise along it.

    Takes O(n log n) time in up to three dimensions, by the sweep of Kung, Luccio and Preparata ("On finding the
    maxima of a set of vectors", JACM 22, 1975), and O(n · front) in more.

    >>> pareto_front([(3.0, 0.8), (2.0, 0.7), (4.0, 0.75), (1.0, 0.6)])
    [3, 1, 0]

    Args:
        points: n points of d numbers each, in any units.
        maximise: d booleans.

    Raises:
        ValueError: a point does not have d numbers.
    """
    minimised = _minimised(points, maximise)
    usable = [i for i, point in enumerate(minimised) if not any(map(math.isnan, point))]
    return _front(minimised, usable)


def hypervolume(points: Sequence[Point], reference: Point, maximise: Sequence[bool] = (False, True)) -> float:
    """Return the volume that the points dominate, bounded by `reference`, the worst value of each objective.

    This is the S-metric of E. Zitzler and L. Thiele ("Multiobjective optimization using evolutionary algorithms",
    PPSN V, 1998). It is exact, in the product of the objectives' units: with FLOPs as a share of the dense model's
    and a reference of (1, 0) it lies in 0..1. Points with a NaN, and points that are not strictly better than the
    reference in every objective, add nothing.

    With n points on the front it takes O(n log n) time in two dimensions, and a factor of n more for each further
    dimension: the volume is sliced between neighbouring values of the first objective.

    >>> hypervolume([(0.5, 0.5), (0.75, 0.75)], reference=(1, 0))
    0.3125

    Args:
        points: n points of d numbers each.
        reference: d numbers.
        maximise: d booleans.

    Raises:
        ValueError: a point or the reference does not have d numbers.
    """
    minimised = _minimised(points, maximise)
    (bound,) = _minimised([reference], maximise)
    inside = [point for point in minimised if all(x < most for x, most in zip(point, bound, strict=True))]
    return _volume(inside, bound)


def _minimised(points: Sequence[Point], maximise: Sequence[bool]) -> list[tuple[float, ...]]:
    """Return the points with maximised objectives negated, so that lower is better in all of them."""
    if any(len(point) != len(maximise) for point in points):
        raise ValueError(f"expected points of {len(maximise)} numbers")
    signs = [-1 if more else 1 for more in maximise]
    return [tuple(map(mul, point, signs)) for point in points]


def _front(points: Sequence[tuple[float, ...]], usable: Sequence[int]) -> list[int]:
    """Return which of the `usable` indices are on the front; lower is better, and there is no NaN.

    In lexicographic order no point is dominated by a later one, so each is compared with the front so far only.
    """
    order = sorted(usable, key=lambda i: (points[i], i))
    front: list[int] = []
    if order and len(points[order[0]]) > 3:
        for index in order:
            if not any(all(map(le, points[other], points[index])) for other in front):
                front.append(index)
        return front
    # Earlier points are no worse in the first objective. In the other two they form a staircase: as `seconds` rise,
    # `thirds` fall.
    seconds: list[float] = []
    thirds: list[float] = []
    for index in order:
        second, third = (*points[index], 0.0, 0.0)[1:3]
        at = bisect_right(seconds, second)
        if at and thirds[at - 1] <= third:
            continue
        front.append(index)
        first = bisect_left(seconds, second)
        last = first
        while last < len(seconds) and thirds[last] >= third:
            last += 1
        seconds[first:last], thirds[first:last] = [second], [third]
    return front


def _volume(points: Sequence[tuple[float, ...]], bound: tuple[float, ...]) -> float:
    """Return the volume between the points, all strictly below `bound`, and `bound`."""
    front = [points[i] for i in _front(points, range(len(points)))]
    if not front:
        return 0.0
    if len(bound) == 1:
        return bound[0] - front[0][0]
    if len(bound) == 2:
        area, reached = 0.0, bound[1]
        for x, y in front:
            area += (bound[0] - x) * (reached - y)
            reached = y
        return area
    volume = 0.0
    ends = [point[0] for point in front[1:]] + [bound[0]]
    for count, (point, end) in enumerate(zip(front, ends, strict=True), 1):
        if end > point[0]:
            volume += (end - point[0]) * _volume([other[1:] for other in front[:count]], bound[1:])
    return volume
