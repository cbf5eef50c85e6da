"""Dominance and hypervolume in two dimensions: FLOPs down, top-1 up. Pure functions over numbers.

One point dominates another if it costs no more, is no less accurate, and differs in one of the two.
"""

import math
from collections.abc import Sequence

Point = tuple[float, float]  # (flops, top1)


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, cheapest first.

    Along the result FLOPs and top-1 both rise strictly. Of points that are equal in both, the first in
    the sequence is on the front. A point with a NaN is never on the front and dominates nothing.

    Takes O(n log n).
    """
    usable = (i for i, (flops, top1) in enumerate(points) if not (math.isnan(flops) or math.isnan(top1)))
    front: list[int] = []
    for index in sorted(usable, key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate, bounded by `reference` = (most FLOPs, least top-1).

    It is exact and in the product of the units given: divide FLOPs by the dense model's for a number
    between 0 and 1. Points that are not strictly better than the reference in both, and points with a NaN,
    add nothing.
    """
    most_flops, least_top1 = reference
    inside = [(flops, top1) for flops, top1 in points if flops < most_flops and top1 > least_top1]
    area, reached = 0.0, least_top1
    for index in pareto_front(inside):
        flops, top1 = inside[index]
        area += (most_flops - flops) * (top1 - reached)
        reached = top1
    return area
