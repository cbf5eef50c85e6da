"""Exact interpolation: the cost of a part of a model as a polynomial of its token counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement
from math import prod

DEGREE = 2  # the highest that is tried

Point = tuple[int, ...]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial with rational coefficients that is whole at whole points.

    Attributes:
        terms: coefficient, and the variables whose product it goes with, repeated by their power.
    """

    terms: tuple[tuple[Fraction, Point], ...]

    def __call__(self, point: Point) -> int:
        """Return the value at a point."""
        value = sum((c * prod(point[i] for i in variables) for c, variables in self.terms), Fraction(0))
        assert value.denominator == 1
        return int(value)


def fitted(count: Callable[[Point], int], variables: int, low: int, high: int) -> Polynomial | None:
    """Return the polynomial of lowest degree, at most `DEGREE`, that equals `count`; None if none does.

    >>> fitted(lambda n: 3 * n[0] ** 2 + 5, 1, 1, 10)((7,))
    152

    Args:
        count: returns the value at a point; points are ascending tuples of integers.
        variables: how many numbers a point has.
        low, high: bounds of these numbers.
    """
    known = cache(count)
    probes = list(_held_out(variables, low, high))
    for degree in range(1, DEGREE + 1):
        values = sorted({low + (high - low) * i // degree for i in range(degree + 1)})
        found = _through(known, variables, values)
        everywhere = len(values) == high - low + 1  # the interpolated points are all points
        if everywhere or all(found(point) == known(point) for point in probes):
            return found
    return None


def _held_out(variables: int, low: int, high: int) -> Iterator[Point]:
    """Yield two inner points, where the value would differ if the polynomial lacked a term."""
    for shift in (0, 1):
        yield tuple(low + (high - low) * (2 * i + 1 + shift) // (2 * variables + 2) for i in range(variables))


def _through(count: Callable[[Point], int], variables: int, values: list[int]) -> Polynomial:
    """Return the polynomial of degree len(values) - 1 through all ascending points with these values.

    There are as many such points as coefficients, and they determine them: a polynomial that vanishes at all of
    them vanishes where the last variable has the largest value (by induction over the variables), so
    that it is that linear factor times one of lower degree that vanishes at the others.
    """
    points = list(combinations_with_replacement(values, variables))
    terms = [term for d in range(len(values)) for term in combinations_with_replacement(range(variables), d)]
    rows = [[Fraction(prod(point[i] for i in term)) for term in terms] + [Fraction(count(point))] for point in points]
    for column in range(len(rows)):  # Gauss and Jordan
        pivot = next(row for row in range(column, len(rows)) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for row in range(len(rows)):
            if row != column and rows[row][column]:
                rows[row] = [a - rows[row][column] * b for a, b in zip(rows[row], rows[column], strict=True)]
    return Polynomial(tuple((row[-1], term) for row, term in zip(rows, terms, strict=True) if row[-1]))
