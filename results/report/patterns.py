"""Patterns of the good schedules of a study: after which blocks they prune, and how much they keep."""

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
    """What the good schedules do after one block.

    Attributes:
        block: the block, counted from 1.
        share: the share of the good schedules, in 0..1, that prune after it.
        keep: the median of their keep ratios; None if none prunes there.
        bands: for each band of the keep ratio, lowest first, the share of the good schedules that keep that much.
    """

    block: int
    share: float
    keep: float | None
    bands: tuple[float, ...]


@dataclass(frozen=True)
class Patterns:
    """The patterns of the good schedules of a study, block by block.

    Attributes:
        schedules: how many schedules are good; see `good_schedules`.
        blocks: the pattern of each block.
        low, high: all bands in use are in `range(low, high)`.
    """

    schedules: int
    blocks: list[BlockPattern]
    low: int
    high: int

    @classmethod
    def of(cls, chart: FrontChart) -> "Patterns":
        """Count the patterns of the good schedules of a chart."""
        steps = [{step.after: step.keep for step in e.schedule.steps} for e in good_schedules(chart)]
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
    def largest_band(self) -> float:
        """The largest share of any band; it scales the colours."""
        return max((share for pattern in self.blocks for share in pattern.bands), default=0.0)

    @property
    def largest_share(self) -> float:
        """The largest share of schedules that prune after the same block; it scales the bars."""
        return max((pattern.share for pattern in self.blocks), default=0.0)

    @property
    def common_blocks(self) -> list[BlockPattern]:
        """The most common blocks, at most four, that at least a quarter of the good schedules prune after."""
        common = [pattern for pattern in self.blocks if pattern.share >= 0.25]
        return sorted(common, key=lambda pattern: -pattern.share)[:4]


def band(keep: float) -> int:
    """Return the band of a keep ratio in (0, 1); a band includes its upper end.

    >>> band(0.7), band(0.71)
    (6, 7)
    """
    return max(0, math.ceil(round(keep * BANDS, 9)) - 1)


def good_schedules(chart: FrontChart) -> list[Evaluation]:
    """Return the front, and the evaluations that are nearly as good: at most one `grain` of the y axis below it.

    An evaluation is compared with the best of the front that costs no more. The dense model is left out.
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


def describe_patterns(patterns: Sequence[BlockPattern]) -> list[str]:
    """Return a sentence on each pattern."""
    return [
        f"{100 * pattern.share:.0f} % prune after block {pattern.block}; the median keeps {pattern.keep:.2g} there"
        for pattern in patterns
        if pattern.keep is not None
    ]
