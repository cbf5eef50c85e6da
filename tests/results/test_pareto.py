"""The front and the hypervolume against brute force."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import hypervolume, pareto_front

# Few distinct values, so that ties and duplicates are common; NaN among them.
VALUE = st.one_of(st.integers(0, 6).map(float), st.floats(0, 10), st.just(math.nan))
POINTS = st.lists(st.tuples(VALUE, VALUE), max_size=40)


@st.composite
def problems(
    draw: st.DrawFn, value: st.SearchStrategy[float], most: int
) -> tuple[list[tuple[float, ...]], list[bool]]:
    """Points of one to five objectives, and for each whether more of it is better."""
    maximise = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    return draw(st.lists(st.tuples(*[value] * len(maximise)), max_size=most)), maximise


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def brute_force_front(points: list[tuple[float, float]]) -> set[int]:
    usable = [i for i, p in enumerate(points) if not any(map(math.isnan, p))]
    return {
        i
        for i in usable
        if not any(dominates(points[j], points[i]) or (points[j] == points[i] and j < i) for j in usable)
    }


@given(POINTS)
def test_front_equals_brute_force_and_is_sorted(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert set(front) == brute_force_front(points)
    assert len(front) == len(set(front))
    flops, top1 = [points[i][0] for i in front], [points[i][1] for i in front]
    assert flops == sorted(set(flops))
    assert top1 == sorted(set(top1))


@given(POINTS)
def test_front_of_the_front_is_the_front(points: list[tuple[float, float]]) -> None:
    kept = [points[i] for i in pareto_front(points)]
    assert pareto_front(kept) == list(range(len(kept)))


@given(problems(VALUE, 30))
def test_front_of_any_number_of_objectives(problem: tuple[list[tuple[float, ...]], list[bool]]) -> None:
    points, maximise = problem
    turned = [tuple(-x if more else x for x, more in zip(p, maximise, strict=True)) for p in points]
    usable = [i for i, p in enumerate(turned) if not any(map(math.isnan, p))]

    def beaten(i: int, j: int) -> bool:
        no_worse = all(a <= b for a, b in zip(turned[j], turned[i], strict=True))
        return no_worse and (turned[i] != turned[j] or j < i)

    front = pareto_front(points, maximise)
    assert len(front) == len(set(front))
    assert set(front) == {i for i in usable if not any(beaten(i, j) for j in usable)}
    assert [turned[i][0] for i in front] == sorted(turned[i][0] for i in front), "best in the first objective first"


@given(POINTS)
def test_a_constant_objective_changes_nothing(points: list[tuple[float, float]]) -> None:
    for more in (True, False):
        assert pareto_front([(*p, 1.0) for p in points], (False, True, more)) == pareto_front(points)
        assert pareto_front([(*p, 1.0, 2.0) for p in points], (False, True, more, more)) == pareto_front(points)


def test_points_of_the_wrong_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="points of 2 numbers"):
        pareto_front([(1.0, 2.0), (1.0, 2.0, 3.0)])
    with pytest.raises(ValueError, match="points of 3 numbers"):
        hypervolume([(1.0, 2.0, 3.0)], (1.0, 0.0), (False, True, False))


class Counted(int):
    """A number that counts how often it is compared."""

    comparisons = 0

    def __mul__(self, other: int) -> "Counted":
        return Counted(int(self) * other)

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __le__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) <= int(other)


def test_a_large_front_is_not_quadratic() -> None:
    # All on the front: the sum of the three is constant. Pairwise, that is 2 · 10⁸ comparisons.
    points = [tuple(map(Counted, (i, (i * 7919) % 20_011, -i - (i * 7919) % 20_011))) for i in range(20_011)]
    Counted.comparisons = 0
    assert len(pareto_front(points, (False, False, False))) == len(points)
    assert 0 < Counted.comparisons < 100 * len(points)


def test_front_by_hand() -> None:
    assert pareto_front([]) == []
    assert pareto_front([(2, 0.9), (1, 0.8), (3, 0.9), (2, 0.7), (4, 0.95)]) == [1, 0, 4]
    assert pareto_front([(1, 0.5), (1, 0.5)]) == [0], "of equal points the first is on the front"
    assert pareto_front([(math.nan, 1.0), (0.0, math.nan), (1, 0.5)]) == [2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=25))
def test_hypervolume_counts_dominated_unit_squares(points: list[tuple[int, int]]) -> None:
    # With whole coordinates the area is the number of unit squares that some point dominates.
    most, least = 8, 1
    squares = sum(
        any(flops <= x and top1 >= y + 1 for flops, top1 in points) for x in range(most) for y in range(least, 9)
    )
    assert hypervolume(points, (most, least)) == pytest.approx(squares)


@given(problems(st.integers(0, 3).map(float), 10))
def test_hypervolume_counts_dominated_unit_cubes(problem: tuple[list[tuple[float, ...]], list[bool]]) -> None:
    points, maximise = problem
    reference = [0.0 if more else 3.0 for more in maximise]
    cells = product(range(3), repeat=len(maximise))  # each by its lower corner
    cubes = sum(
        any(all(x >= c + 1 if more else x <= c for x, c, more in zip(p, cell, maximise, strict=True)) for p in points)
        for cell in cells
    )
    assert hypervolume(points, reference, maximise) == pytest.approx(cubes)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([], (1, 0)) == 0
    assert hypervolume([(0.5, 0.8)], (1, 0)) == pytest.approx(0.4)
    assert hypervolume([(0.5, 0.8), (0.25, 0.4)], (1, 0)) == pytest.approx(0.5)
    assert hypervolume([(1.0, 0.8), (1.2, 0.9), (0.5, 0.0), (math.nan, 0.5)], (1, 0)) == 0
    assert hypervolume([(0.25, math.nan), (0.5, 0.8)], (1, 0)) == pytest.approx(0.4)
