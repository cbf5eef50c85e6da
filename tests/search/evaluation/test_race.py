"""A paired race stops what cannot join the front, and seldom anything else."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data.image_order import DEFAULT_ORDER, STRATIFIED, image_order
from search.evaluation.race import Race, hypergeometric_cdf, tail


def exact_cdf(most: int, total: int, marked: int, drawn: int) -> Fraction:
    """By counting."""
    ways = sum(comb(marked, k) * comb(total - marked, drawn - k) for k in range(0, most + 1) if k <= drawn)
    return Fraction(ways, comb(total, drawn))


@given(st.data())
def test_the_hypergeometric_tail_is_the_exact_one(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 60))
    marked, drawn = data.draw(st.integers(0, total)), data.draw(st.integers(0, total))
    most = data.draw(st.integers(0, drawn))
    exact = float(exact_cdf(most, total, marked, drawn))
    assert hypergeometric_cdf(most, total, marked, drawn) == pytest.approx(exact)


@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25))
@settings(max_examples=200)
def test_the_tail_bounds_that_of_every_candidate_that_would_join(better: int, worse: int, to_come: int) -> None:
    """However many of the images to come are discordant, and by however many the candidate wins in the end."""
    drawn = better + worse
    for total in range(drawn, drawn + to_come + 1):
        for marked in range(total // 2 + 1, total + 1):
            if better <= marked <= total - worse:
                assert exact_cdf(better, total, marked, drawn) <= tail(better, worse, to_come) + 1e-9


def run(bar: np.ndarray, mine: np.ndarray, error: float, batch: int) -> int:
    """Return after how many images the race stops."""
    race = Race(len(bar), error)
    for end in range(batch, len(bar) + batch, batch):
        if race.lost(mine[:end], bar):
            return min(end, len(bar))
    return len(bar)


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_hardly_any_that_would_join_is_stopped(error: float) -> None:
    """The hardest case: candidates that beat their bar by a single image."""
    random = np.random.default_rng(0)
    images, rounds, stopped = 1000, 1000, 0
    for _ in range(rounds):
        discordant = int(random.integers(1, images // 4)) * 2 + 1
        outcome = np.zeros(images, np.int8)
        outcome[: discordant // 2 + 1] = 1  # only the candidate is right
        outcome[discordant // 2 + 1 : discordant] = 2  # only the bar is
        outcome = random.permutation(outcome)
        stopped += run(outcome == 2, outcome == 1, error, 50) < images
    assert stopped / rounds <= error


ZIPF = np.repeat(np.arange(200), [200 // k for k in range(1, 201)])
UNBALANCED = {
    "singletons": np.concatenate([np.repeat([0, 1], 500), np.arange(2, 1002)]),
    "zipf": ZIPF,
    "pairs": np.repeat(np.arange(1000), 2),
}


def narrow_win(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """1 where only the candidate is right, -1 where only the bar is: it wins by one image, and on rare classes."""
    outcome = np.zeros(len(labels), np.int8)
    if len(labels) == 2 * len(np.unique(labels)):  # one image of each class is won and one lost
        outcome[::2], outcome[1::2] = 1, -1
        outcome[1] = 0
        return outcome
    is_rare = np.bincount(labels)[labels] <= 3
    rare, common = random.permutation(np.flatnonzero(is_rare)), random.permutation(np.flatnonzero(~is_rare))
    count = min(len(rare) // 2, len(common)) * 4 // 5
    outcome[rare[: count + 1]], outcome[common[:count]] = 1, -1
    return outcome


def false_stops(labels: np.ndarray, order: str, races: int) -> int:
    """How many races at an error of 0.05 stop a candidate that wins in the end, each with another seed."""
    stopped = 0
    for seed in range(races):
        outcome = narrow_win(labels, np.random.default_rng(seed))[image_order(labels, order, seed)]
        stopped += run(outcome < 0, outcome > 0, 0.05, 100) < len(labels)
    return stopped


@pytest.mark.parametrize("name", UNBALANCED)
def test_on_unbalanced_classes_hardly_any_that_would_join_is_stopped(name: str) -> None:
    """The bound is an expectation of 20 in 400; more than 20 have not been seen in any set."""
    assert false_stops(UNBALANCED[name], DEFAULT_ORDER, 400) <= 20


@pytest.mark.parametrize("name", ["singletons", "zipf"])
def test_the_stratified_order_of_older_studies_breaks_the_bound(name: str) -> None:
    assert false_stops(UNBALANCED[name], STRATIFIED, 40) > 20


def test_a_clear_loser_stops_early_and_a_twin_of_the_bar_runs_on() -> None:
    random = np.random.default_rng(1)
    bar = random.random(5000) < 0.7
    assert run(bar, bar & (random.random(5000) < 0.5), 0.05, 100) == 100
    assert run(bar, bar ^ (random.random(5000) < 0.02), 0.05, 100) > 1000


def test_what_cannot_win_any_more_stops_for_certain() -> None:
    assert tail(better=3, worse=10, to_come=7) == 0.0
    assert tail(better=3, worse=10, to_come=8) > 0.0


def test_no_race_stops_after_its_last_image() -> None:
    bar = np.ones(100, np.bool_)
    assert run(bar, ~bar, 1e-12, 100) == 100
    assert not Race(100, 0.05).lost(~bar, bar)


@given(st.integers(0, 2**32 - 1), st.integers(1, 99))
def test_an_opponent_s_images_to_come_count_for_nothing(seed: int, seen: int) -> None:
    mine, theirs = np.random.default_rng(seed).random((2, 100)) < [[0.5], [0.9]]
    assert Race(100, 0.05).lost(mine[:seen], theirs) == Race(100, 0.05).lost(mine[:seen], theirs[:seen])
