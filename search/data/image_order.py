"""The order in which the images of a split are evaluated."""

import numpy as np
from numpy.typing import NDArray

ORDER_SEED = 0


def mixed_order(labels: NDArray[np.int64], seed: int = ORDER_SEED) -> NDArray[np.int64]:
    """Return all indices, shuffled and stratified: every prefix has the classes in nearly their overall shares.

    Of the n images of a class, shuffled, number r is placed at (r + ½)/n of the way; ties are broken at random.

    Args:
        labels: the class of each image, (N,).
        seed: of the shuffle; the result is the same in all versions of NumPy.

    >>> order = mixed_order(np.repeat([0, 1], [2, 4]))
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4, 5]
    >>> np.repeat([0, 1], [2, 4])[order[:3]].tolist().count(1)
    2
    """
    random = np.random.RandomState(seed)  # NumPy guarantees its stream across versions
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = random.permutation(np.flatnonzero(labels == label))
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.lexsort((random.permutation(len(labels)), place)).astype(np.int64)
