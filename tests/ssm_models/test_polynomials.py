"""Polynomials through counts: found exactly, of no higher degree than needed, and refused where there is none."""

from itertools import combinations_with_replacement
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from ssm_models.polynomials import fitted


def ascending(variables: int, low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    numbers = st.lists(st.integers(low, high), min_size=variables, max_size=variables)
    return numbers.map(lambda drawn: tuple(sorted(drawn)))


@given(st.data(), st.integers(0, 4), st.integers(0, 2), st.integers(1, 3), st.integers(0, 200))
def test_a_polynomial_is_found_from_few_counts(data, variables, degree, low, extent) -> None:
    terms = [term for d in range(degree + 1) for term in combinations_with_replacement(range(variables), d)]
    costs = data.draw(st.lists(st.integers(0, 10**9), min_size=len(terms), max_size=len(terms)))
    asked = set()

    def count(point: tuple[int, ...]) -> int:
        assert list(point) == sorted(point) and all(low <= number <= low + extent for number in point)
        asked.add(point)
        return sum(cost * prod(point[i] for i in term) for cost, term in zip(costs, terms, strict=True))

    found = fitted(count, variables, low, low + extent)
    assert found is not None and len(asked) <= (variables + 2) * (variables + 1) // 2 + 2
    point = data.draw(ascending(variables, low, low + extent))
    assert found(point) == count(point)


@given(st.integers(1, 4), st.data())
def test_what_is_no_polynomial_of_degree_two_is_refused(variables, data) -> None:
    which = data.draw(st.integers(0, variables - 1))
    assert fitted(lambda point: point[which] ** 3, variables, 2, 50) is None


def test_where_few_counts_are_possible_they_are_all_asked_for() -> None:
    cubes = fitted(lambda point: point[0] ** 3, 1, 2, 4)
    assert cubes is not None and [cubes((n,)) for n in (2, 3, 4)] == [8, 27, 64]
