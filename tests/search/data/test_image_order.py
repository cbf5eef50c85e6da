"""The order in which images are evaluated."""

import numpy as np

from search.data.image_order import mixed_order


def test_every_prefix_has_the_classes_in_their_shares() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = mixed_order(labels)
    assert sorted(order.tolist()) == list(range(1000))
    for count in (10, 50, 333, 900):
        shares = np.bincount(labels[order[:count]], minlength=3) / count
        assert np.abs(shares - [0.6, 0.3, 0.1]).max() <= 1.5 / count
