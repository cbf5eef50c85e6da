"""What good schedules share: after which blocks they prune, and how much they keep there."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from results.records import Evaluation
from results.report.front_chart import FrontChart

BANDS = 10  # of the keep ratio: (0, 0.1], …, (0.9, 1]


@dataclass(frozen=True)
class BlockPattern:
    """What good schedules do after one block.

    Attributes:
        block: from 1.
        share: of the good schedules that have a step there, 0..1.
        keep: the median of their keep ratios; None where none has a step.
        bands: for each band of the keep ratio, lowest first, the share of the good schedules whose step lies in it.
    """

    block: int
    share: float
    keep: float | None
    bands: tuple[float, ...]


@dataclass(frozen=True)
class Patterns:
    """The good schedules of a study, block by block.

    Attributes:
        schedules: how many are good: those of the front, and those that lie hardly behind it.
        blocks: a pattern a block.
        low, high: the bands from `low` up to `high`, which is not among them, are all that are used.
    """

    schedules: int
    blocks: list[BlockPattern]
    low: int
    high: int

    @classmethod
    def of(cls, chart: FrontChart) -> "Patterns":
        """Count what the good schedules of a chart do."""
        steps = [{step.after: step.keep for step in e.schedule.steps} for e in good(chart)]
        depth, count = chart.study.spec.token_layout.depth, len(steps)
        blocks = []
        for block in range(1, depth + 1):
            kept = [one[block] for one in steps if block in one]
            found = [0.0] * BANDS
            for keep in kept:
                found[band(keep)] += 1 / count
            middle = median(kept) if kept else None
            blocks.append(BlockPattern(block, len(kept) / count if count else 0.0, middle, tuple(found)))
        used = [i for i in range(BANDS) if any(pattern.bands[i] for pattern in blocks)]
        return cls(count, blocks, min(used, default=0), max(used, default=-1) + 1)

    @property
    def strongest(self) -> float:
        """The largest share of a band, to scale colours by."""
        return max((share for pattern in self.blocks for share in pattern.bands), default=0.0)

    @property
    def most(self) -> float:
        """The largest share of schedules that prune after one block."""
        return max((pattern.share for pattern in self.blocks), default=0.0)

    @property
    def favourites(self) -> list[BlockPattern]:
        """The blocks that most of the good schedules prune after, at most four, the most common first."""
        common = [pattern for pattern in self.blocks if pattern.share >= 0.25]
        return sorted(common, key=lambda pattern: -pattern.share)[:4]


def band(keep: float) -> int:
    """Return the band that a keep ratio in (0, 1) lies in; the upper end of a band belongs to it."""
    return max(0, math.ceil(round(keep * BANDS, 9)) - 1)


def good(chart: FrontChart) -> list[Evaluation]:
    """Return the front, and what is at most a point (the grain of the axis) worse at no higher cost.

    The dense model is not among them, and neither is what does worse than a cheaper schedule by more than that.
    """
    sign = 1.0 if chart.y.rising else -1.0
    front = list(chart.front)
    if chart.line and front:
        costs = [chart.cost(e) for e in front]
        heights: list[float] = []
        for e in front:
            height = sign * chart.height(e)
            heights.append(max(height, heights[-1]) if heights else height)
        for e in chart.others:
            place = bisect_right(costs, chart.cost(e)) - 1
            if place >= 0 and sign * chart.height(e) >= heights[place] - chart.y.grain:
                front.append(e)
    return [e for e in front if not e.schedule.dense]


def in_words(patterns: Sequence[BlockPattern]) -> list[str]:
    """Return a sentence for each pattern."""
    return [
        f"{100 * pattern.share:.0f} % prune after block {pattern.block}; the median keeps {pattern.keep:.2g} there"
        for pattern in patterns
        if pattern.keep is not None
    ]
