"""The order in which images are evaluated."""

import numpy as np
import pytest

from search.data.image_order import DEFAULT_ORDER, ORDERS, SHUFFLED, STRATIFIED, image_order
from spaces.errors import UnknownNameError

SINGLETONS = np.concatenate([np.repeat([0, 1], 100), np.arange(2, 202)])  # two common classes and 200 of one image


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_is_a_permutation_that_a_seed_repeats(name: str) -> None:
    order = image_order(SINGLETONS, name)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(400))
    assert np.array_equal(order, image_order(SINGLETONS, name))
    assert not np.array_equal(order, image_order(SINGLETONS, name, seed=1))


def test_the_streams_of_the_orders_never_change() -> None:
    """Studies that were begun with them are resumed with the same images."""
    labels = np.repeat([0, 1, 2], [5, 1, 2])
    assert image_order(labels, STRATIFIED).tolist() == [2, 6, 0, 1, 5, 3, 7, 4]
    assert image_order(labels, SHUFFLED).tolist() == [6, 2, 1, 7, 3, 0, 5, 4]


def test_an_order_that_this_version_lacks_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="order of images 'sorted'"):
        image_order(SINGLETONS, "sorted")


def test_the_default_order_does_not_know_the_labels() -> None:
    assert np.array_equal(image_order(SINGLETONS), image_order(np.zeros(400, np.int64)))


def rare_share(name: str, begin: int, end: int) -> float:
    """The share of images of rare classes between two places of the order, over 200 seeds."""
    orders = [image_order(SINGLETONS, name, seed)[begin:end] for seed in range(200)]
    return float(np.mean([SINGLETONS[order] > 1 for order in orders]))


def test_rare_classes_are_as_frequent_in_the_beginning_as_in_the_rest() -> None:
    """200 × 40 images: a standard error is 0.006."""
    assert rare_share(DEFAULT_ORDER, 0, 40) == pytest.approx(0.5, abs=0.025)
    assert rare_share(DEFAULT_ORDER, 40, 400) == pytest.approx(0.5, abs=0.025)
    assert rare_share(STRATIFIED, 0, 40) == 0.0


def test_every_beginning_of_the_stratified_order_has_the_classes_in_their_shares() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = image_order(labels, STRATIFIED)
    for count in (10, 50, 333, 900):
        shares = np.bincount(labels[order[:count]], minlength=3) / count
        assert np.abs(shares - [0.6, 0.3, 0.1]).max() <= 1.5 / count
