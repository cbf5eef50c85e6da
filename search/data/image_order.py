"""The order in which the images of a split are evaluated, by name.

A study evaluates a beginning of the order, confirms its front on others, and lets candidates race through it
(`search.evaluation.race`). All three ask that every beginning is a simple random sample of the split: then a score is
unbiased, its interval is right, and the bound on a race's error holds. So the order is a plain permutation.

The first order, `stratified`, gives every beginning the classes in nearly their shares. That ties an image's place to
its class: a class of one image stands exactly halfway. Where a candidate wins on rare classes and loses on common
ones, races at an error of 0.05 stopped it in 100 % of the cases on two classes of 500 beside 1,000 of one image, and
in 92 % on a Zipf set. Random offsets in place of the half mend these two, but not classes of two images, one won and
one lost (6 to 7 %). The permutation stays below 3 % on all of them. On ten equal classes it adds about 2 % to the
standard deviation of the accuracy of the first 200 images, and no images to races. docs/statistics.md has the table,
which `python benchmarks/image_order.py --races 2000` prints.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spaces.errors import UnknownNameError

ORDER_SEED = 0
SHUFFLED, STRATIFIED = "shuffled", "stratified"
DEFAULT_ORDER = SHUFFLED


def image_order(labels: NDArray[np.int64], name: str = DEFAULT_ORDER, seed: int = ORDER_SEED) -> NDArray[np.int64]:
    """Return all indices of a split in an order.

    Args:
        labels: the class of each image, (N,).
        name: a name in `ORDERS`. Studies keep the order that they were begun with.
        seed: of the shuffle; the result is the same in all versions of NumPy.

    Raises:
        UnknownNameError: there is no such order.

    >>> image_order(np.repeat([0, 1], [2, 4])).tolist()
    [5, 2, 1, 3, 0, 4]
    """
    if name not in ORDERS:
        raise UnknownNameError("order of images", name, ORDERS)
    return ORDERS[name](labels, np.random.RandomState(seed)).astype(np.int64)  # its stream is fixed for all versions


def shuffled(labels: NDArray[np.int64], random: np.random.RandomState) -> NDArray[np.int64]:
    """Return a permutation in which every order is equally probable, whatever the labels are."""
    return random.permutation(len(labels))


def stratified(labels: NDArray[np.int64], random: np.random.RandomState) -> NDArray[np.int64]:
    """Return a permutation in which every beginning has the classes in nearly their shares; for older studies.

    Of the n images of a class, shuffled, number r is placed at (r + ½)/n of the way; ties are broken at random.

    >>> labels = np.repeat([0, 1], [2, 4])
    >>> labels[stratified(labels, np.random.RandomState(0))[:3]].tolist().count(1)
    2
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = random.permutation(np.flatnonzero(labels == label))
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.lexsort((random.permutation(len(labels)), place))


ORDERS: dict[str, Callable[[NDArray[np.int64], np.random.RandomState], NDArray[np.int64]]] = {
    SHUFFLED: shuffled,
    STRATIFIED: stratified,
}
"""The orders by name. Their streams never change, because studies that were begun with them are resumed."""
