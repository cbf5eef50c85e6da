"""The scores of a front on its confirming images: differences to the dense model, dominated points, hypervolume.

All of it is of images on which the whole front was scored, and pairs the answers to one image. The intervals are
about a new sample of images; the front, which the search chose, is taken as given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from results.image_sets import images_text
from results.intervals import paired_interval, z_of
from results.objectives import dominated_points
from results.records import Confirmation, Evaluation, StudySpec


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FrontScores:
    """What the confirming images say of a front.

    Attributes:
        images: which they are, in a few words; None if nothing is confirmed.
        searched: whether the images of the search are among them, so that they took part in choosing the front.
        differences: by hash, top-1 less the dense model's, paired by images. The intervals hold for all at once.
        dominated: hashes of the points that another one beats by the confirmed scores.
        hypervolume: of the front as the search chose it, from FLOPs as a share of the dense model's and top-1, with
            the reference (budget, 0): for every cost the score of the point that the search would choose for it. None
            unless each point has the outcome of each image.
    """

    images: str | None
    searched: bool
    differences: Mapping[str, Estimate]
    dominated: frozenset[str]
    hypervolume: Estimate | None

    @classmethod
    def of(cls, front: Sequence[Evaluation], spec: StudySpec, dense: Confirmation | None) -> "FrontScores":
        """Compare the points of a front; `dense` is the dense model's confirmed score."""
        confirmed = [e for e in front if e.confirmed is not None]
        skip = spec.images if spec.confirm_split == "rest" else 0
        split = "val" if spec.confirm_split == "rest" else spec.confirm_split
        outcomes = {e.hash: bits for e in confirmed if (bits := _outcomes(e.confirmed)) is not None}
        return cls(
            images=images_text(split, spec.confirm_images, skip) if confirmed else None,
            searched=spec.confirm_split == "val",
            differences=_differences(outcomes, _outcomes(dense)),
            dominated=dominated_points(front, spec.objectives),
            hypervolume=_hypervolume(front, outcomes, spec),
        )


def _outcomes(confirmation: Confirmation | None) -> NDArray[np.bool_] | None:
    """Return (images,) bool, which answers are right; None if that is not recorded."""
    if confirmation is None or confirmation.outcomes is None:
        return None
    bits = np.unpackbits(np.frombuffer(confirmation.outcomes, np.uint8), count=confirmation.images).astype(np.bool_)
    # Outcomes of anything else, such as agreement with the dense model, are not taken for right answers.
    return bits if abs(bits.mean() - confirmation.top1) < 0.5 / confirmation.images else None


def _differences(outcomes: Mapping[str, NDArray[np.bool_]], dense: NDArray[np.bool_] | None) -> dict[str, Estimate]:
    found = {}
    for name, mine in outcomes.items():
        if dense is None or len(dense) != len(mine):
            continue
        better, worse = int((mine & ~dense).sum()), int((~mine & dense).sum())
        interval = paired_interval(better, worse, len(mine), comparisons=len(outcomes))
        found[name] = Estimate((better - worse) / len(mine), *interval)
    return found


def _hypervolume(
    front: Sequence[Evaluation], outcomes: Mapping[str, NDArray[np.bool_]], spec: StudySpec
) -> Estimate | None:
    if not front or set(spec.objectives) != {"top1", "flops"} or any(e.hash not in outcomes for e in front):
        return None
    ordered = sorted(front, key=lambda e: e.flops)
    costs = np.minimum([*(e.flops for e in ordered), spec.limit], spec.limit) / spec.dense_flops
    # Linear in the outcomes, so that its mean over images is unbiased and has the usual interval of a mean.
    each = np.diff(costs) @ np.stack([outcomes[e.hash] for e in ordered]).astype(np.float64)
    half = z_of(1) * float(each.std(ddof=1)) / len(each) ** 0.5 if len(each) > 1 else float("inf")
    value = float(each.mean())
    return Estimate(value, value - half, value + half)
