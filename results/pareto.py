"""Dominance and hypervolume in any number of dimensions. Pure functions over numbers.

A point is one number for each objective; `maximise` says for each whether more of it is better. The
default is that of the project's own plane, (FLOPs, top-1): FLOPs down, top-1 up.

One point dominates another if it is no worse in any objective and better in at least one.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import le, mul

Point = Sequence[float]


def pareto_front(points: Sequence[Point], maximise: Sequence[bool] = (False, True)) -> list[int]:
    """Return the indices of the points that no other dominates, best in the first objective first.

    Of points that are equal in every objective, the first in the sequence is on the front. A point with a
    NaN is never on the front and dominates nothing. In two dimensions both objectives change strictly along
    the result: for the default FLOPs and top-1 both rise.

    Takes O(n log n) in up to three dimensions, and O(n · front) in more.

    Raises:
        ValueError: a point has not one number for each entry of `maximise`.
    """
    falling = _minimised(points, maximise)
    usable = [i for i, point in enumerate(falling) if not any(map(math.isnan, point))]
    return _front(falling, usable)


def hypervolume(points: Sequence[Point], reference: Point, maximise: Sequence[bool] = (False, True)) -> float:
    """Return the volume that the points dominate, bounded by `reference`, the worst value of each objective.

    It is exact and in the product of the units given: for the default with a reference of (1, 0), divide
    FLOPs by the dense model's for a number between 0 and 1. Points that are not strictly better than the
    reference in every objective, and points with a NaN, add nothing.

    With n points on the front it takes O(n log n) in two dimensions, and a factor of n more for each further
    one: the volume is cut into slabs between neighbouring values of the first objective.

    Raises:
        ValueError: a point, or the reference, has not one number for each entry of `maximise`.
    """
    falling = _minimised(points, maximise)
    (bound,) = _minimised([reference], maximise)
    inside = [point for point in falling if all(x < most for x, most in zip(point, bound, strict=True))]
    return _volume(inside, bound)


def _minimised(points: Sequence[Point], maximise: Sequence[bool]) -> list[tuple[float, ...]]:
    """Return the points with the sign turned where more is better, so that less is better everywhere."""
    if any(len(point) != len(maximise) for point in points):
        raise ValueError(f"expected points of {len(maximise)} numbers")
    signs = [-1 if more else 1 for more in maximise]
    return [tuple(map(mul, point, signs)) for point in points]


def _front(points: Sequence[tuple[float, ...]], usable: Sequence[int]) -> list[int]:
    """Return which of the `usable` indices are on the front, where less is better and there is no NaN.

    In lexicographic order no point is dominated by a later one, so each is only compared with the front so far.
    """
    order = sorted(usable, key=lambda i: (points[i], i))
    front: list[int] = []
    if order and len(points[order[0]]) > 3:
        for index in order:
            if not any(all(map(le, points[other], points[index])) for other in front):
                front.append(index)
        return front
    # All earlier points are no worse in the first objective. What they reach in the other two is a staircase:
    # as `seconds` rise, `thirds` fall.
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
