"""Compares orders of a split's images: whether the race's bound holds in them, and what they cost.

    python benchmarks/image_order.py [--races 2000]

Takes half a minute on one core, with 2,000 races three, and needs no data: outcomes of images are drawn.

- false stops: races at error 0.05 that stop a candidate which wins by one image over the whole set. In `singletons`
  and `zipf` it wins on rare classes and loses on common ones; in `pairs` it wins on one image of each class and loses
  on the other; in `balanced` its wins are anywhere.
- rare: share of images of classes of at most three in the first 10 % of the order, and in the rest.
- sd: standard deviation, in points, of the accuracy of the first 200 of `images` images of ten equal classes, whose
  accuracies are spread evenly over 0.6 to 0.9.
- run: share of the images that a race runs before it stops a candidate which is 5 points worse, on `balanced`.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from search.evaluation.race import Race

Labels = NDArray[np.int64]
Order = Callable[[Labels, np.random.RandomState], NDArray[np.int64]]
ERROR, BATCH = 0.05, 100


def placed(offset: Callable[[int, np.random.RandomState], float | NDArray[np.float64]]) -> Order:
    """Return the order that places image r of a class of n at (r + offset)/n of the way."""

    def order(labels: Labels, random: np.random.RandomState) -> NDArray[np.int64]:
        place = np.empty(len(labels))
        for label in np.unique(labels):
            mine = random.permutation(np.flatnonzero(labels == label))
            place[mine] = (np.arange(len(mine)) + offset(len(mine), random)) / len(mine)
        return np.lexsort((random.permutation(len(labels)), place)).astype(np.int64)

    return order


ORDERS: dict[str, Order] = {
    "(r + 1/2)/n": placed(lambda n, random: 0.5),
    "(r + U)/n, one U a class": placed(lambda n, random: random.random_sample()),
    "(r + U)/n, one U an image": placed(lambda n, random: random.random_sample(n)),
    "permutation": lambda labels, random: random.permutation(len(labels)),
}


def singletons() -> Labels:
    """Two classes of 500 and 1,000 of one image."""
    return np.concatenate([np.repeat([0, 1], 500), np.arange(2, 1002)])


def zipf() -> Labels:
    """200 classes, class k of 200/k images: about 1,000 in all, half of the classes with one."""
    return np.repeat(np.arange(200), [200 // k for k in range(1, 201)])


def balanced() -> Labels:
    """Ten classes of 200."""
    return np.repeat(np.arange(10), 200)


def pairs() -> Labels:
    """1,000 classes of two."""
    return np.repeat(np.arange(1000), 2)


def rare(labels: Labels) -> NDArray[np.bool_]:
    """Return which images are of a class of at most three."""
    return np.bincount(labels)[labels] <= 3


def narrow_win(labels: Labels, random: np.random.RandomState, wins: str) -> NDArray[np.int8]:
    """Return 1 where only the candidate is right, -1 where only its opponent is: one image more of the first."""
    outcome = np.zeros(len(labels), np.int8)
    if wins == "in each class":
        outcome[::2], outcome[1::2] = 1, -1
        outcome[1] = 0
        return outcome
    is_rare = rare(labels) if wins == "on rare classes" else np.ones(len(labels), np.bool_)
    mine = random.permutation(np.flatnonzero(is_rare))
    other = random.permutation(np.flatnonzero(~is_rare)) if wins == "on rare classes" else mine[len(mine) // 2 :]
    count = min(len(mine) // 2, len(other)) * 4 // 5
    outcome[mine[: count + 1]], outcome[other[:count]] = 1, -1
    return outcome


def images_run(mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> int:
    """Return after how many images a race ends."""
    race = Race(len(mine), ERROR)
    for end in range(BATCH, len(mine), BATCH):
        if race.lost(mine[:end], theirs):
            return end
    return len(mine)


def false_stops(order: Order, labels: Labels, wins: str, races: int) -> float:
    """Return the share of races that stop a candidate which would have won."""
    stopped = 0
    for seed in range(races):
        random = np.random.RandomState(seed)
        outcome = narrow_win(labels, random, wins)[order(labels, random)]
        stopped += images_run(outcome > 0, outcome < 0) < len(labels)
    return stopped / races


def rare_shares(order: Order, labels: Labels, seeds: int) -> tuple[float, float]:
    """Return the share of rare images in the first tenth and in the rest."""
    first = len(labels) // 10
    drawn = np.array([rare(labels)[order(labels, np.random.RandomState(seed))] for seed in range(seeds)])
    return float(drawn[:, :first].mean()), float(drawn[:, first:].mean())


def spread(order: Order, images: int, seeds: int) -> float:
    """Return the standard deviation of the accuracy of the first 200 images of ten equal classes."""
    labels = np.repeat(np.arange(10), images // 10)
    right = np.random.RandomState(0).random_sample(images) < np.linspace(0.6, 0.9, 10)[labels]
    return float(np.std([right[order(labels, np.random.RandomState(seed))[:200]].mean() for seed in range(seeds)]))


def share_run(order: Order, races: int) -> float:
    """Return the share of images that a race runs of a candidate which is right on 75 % against 80 %."""
    labels, shares = balanced(), []
    for seed in range(races):
        random = np.random.RandomState(seed)
        ours = order(labels, random)
        theirs = random.random_sample(len(labels)) < np.linspace(0.7, 0.9, 10)[labels]
        mine = theirs ^ (random.random_sample(len(labels)) < np.where(theirs, 0.125, 0.25))
        shares.append(images_run(mine[ours], theirs[ours]) / len(labels))
    return float(np.mean(shares))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=400)
    races = parser.parse_args().races
    sets: list[tuple[str, Labels, str]] = [
        ("singletons", singletons(), "on rare classes"),
        ("zipf", zipf(), "on rare classes"),
        ("pairs", pairs(), "in each class"),
        ("balanced", balanced(), "anywhere"),
    ]
    heads = [name for name, _, _ in sets] + ["zipf: rare, first", "rest", "sd of 1,000", "sd of 5,000", "run"]
    print(f"{'order':28}" + "".join(f"{head:>18}" for head in heads))
    for name, order in ORDERS.items():
        cells = [f"{false_stops(order, labels, wins, races):.1%}" for _, labels, wins in sets]
        cells += [f"{share:.1%}" for share in rare_shares(order, zipf(), races)]
        cells += [f"{100 * spread(order, images, 2 * races):.2f}" for images in (1000, 5000)]
        cells += [f"{share_run(order, races):.1%}"]
        print(f"{name:28}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
