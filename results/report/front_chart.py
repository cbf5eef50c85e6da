"""The data of the plots as plain numbers: the front, the other evaluations, the dense model, tokens by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TypeVar

from results.front_scores import FrontScores
from results.objectives import search_front
from results.records import Confirmation, Evaluation, Study
from results.report.axes import Axis, axes
from spaces import PruningSchedule, TokenLayout

T = TypeVar("T")
MANY = 1500  # points; a browser is too slow with one element for each of more


@dataclass(frozen=True)
class FrontChart:
    """The evaluations of a study, sorted for a plot of quality against cost.

    Attributes:
        study: the study.
        x: the axis of the cost.
        y: the axis of the quality.
        front: the best evaluations by the study's objectives, cheapest first.
        others: the other evaluations that are done.
        tuned: those with a fine-tuned top-1; empty if y is not top-1.
        stopped: how many were stopped; they have no score to plot.
        dense_confirmed: the dense model's confirmed score, if there is one.
    """

    study: Study
    x: Axis
    y: Axis
    front: list[Evaluation]
    others: list[Evaluation]
    tuned: list[Evaluation]
    stopped: int
    dense_confirmed: Confirmation | None = None

    @classmethod
    def of(
        cls, study: Study, evaluations: Sequence[Evaluation], dense_confirmed: Confirmation | None = None
    ) -> "FrontChart":
        """Sort the evaluations; those without a value on one of the axes are left out."""
        x, y = axes(study.spec.objectives, study.spec.metric)
        done = [e for e in evaluations if e.state == "done" and None not in (x.value(e), y.value(e))]
        chosen = set(search_front(done, study.spec.objectives))
        return cls(
            study,
            x,
            y,
            front=sorted((done[i] for i in chosen), key=lambda e: (_on_axis(x.value(e)), e.number)),
            others=[e for i, e in enumerate(done) if i not in chosen],
            tuned=[e for e in done if y.objective == "top1" and e.finetuned is not None],
            stopped=sum(e.state == "stopped" for e in evaluations),
            dense_confirmed=dense_confirmed,
        )

    @property
    def budget_ratio(self) -> float:
        """The budget as a share of the dense FLOPs."""
        return self.study.spec.limit / self.study.spec.dense_flops

    @property
    def many(self) -> bool:
        """Whether there are so many points that the page draws them with WebGL."""
        return len(self.others) > MANY

    @property
    def line(self) -> bool:
        """Whether the front is a line: the axes show all its objectives."""
        return {self.x.objective, self.y.objective} == set(self.study.spec.objectives)

    @property
    def front_name(self) -> str:
        """The name of the best evaluations in the legend."""
        name = "Pareto front" if len(self.study.spec.objectives) > 1 else "best"
        return f"{name}, 95 %" if any(self.y.interval(e) for e in self.front) else name

    @property
    def confirming(self) -> bool:
        """Whether the study has confirmed scores, so that points without one are marked."""
        return self.study.confirmed > 0

    @cached_property
    def scores(self) -> FrontScores:
        """What the confirming images say of the front."""
        return FrontScores.of(self.front, self.study.spec, self.dense_confirmed)

    @property
    def dense_top1(self) -> float:
        """The dense model's reported top-1, in 0..1."""
        return self.study.spec.dense_top1 if self.dense_confirmed is None else self.dense_confirmed.top1

    @property
    def tuned_on(self) -> str:
        """The images that the fine-tuned scores are of, in a few words."""
        return "; ".join(sorted({e.finetuned.scored_on for e in self.tuned if e.finetuned is not None}))

    def before_tuning(self, evaluation: Evaluation) -> float:
        """Return the score in 0..1 of a fine-tuned evaluation before fine-tuning, on the images of the one after it.

        Older records lack it. They are of the images of the search, as its own score is.
        """
        before = None if evaluation.finetuned is None else evaluation.finetuned.before_top1
        return (evaluation.top1 or 0.0) if before is None else before

    def dense_tuning(self, evaluation: Evaluation) -> float:
        """Return the dense model's score in 0..1 on the images of an evaluation's fine-tuned score."""
        dense = None if evaluation.finetuned is None else evaluation.finetuned.dense_top1
        return self.study.spec.dense_top1 if dense is None else dense

    @property
    def dense_height(self) -> float:
        """The dense model's reported value on the y axis, as shown."""
        return self.dense_height_of(self.dense_confirmed)

    def cost(self, evaluation: Evaluation) -> float:
        """Return the value of an evaluation of the chart on the x axis."""
        return _on_axis(self.x.value(evaluation))

    def height(self, evaluation: Evaluation) -> float:
        """Return the value of an evaluation of the chart on the y axis, as shown."""
        return _on_axis(self.y.value(evaluation))

    def span(self, evaluation: Evaluation) -> tuple[float, float]:
        """Return the ends of the error bar of an evaluation of the chart; without one, both are its height."""
        height = self.height(evaluation)
        return self.y.interval(evaluation) or (height, height)

    def view(self) -> tuple[float, float]:
        """Return the range (low, high) of y that shows the dense model and the front with its error bars.

        The cheapest points of a front may be far worse than the rest, and would flatten it. So the range leaves out
        points that are more than four times as far from the best as the median of the front is.
        """
        sign = 1.0 if self.y.rising else -1.0  # so that higher is better
        dense = sign * self.dense_height
        heights = {e.hash: sign * self.height(e) for e in self.front}
        tops = [*heights.values(), dense, *(100 * (e.finetuned_top1 or 0.0) for e in self.tuned)]
        usual = max(tops) - 4 * max(max(tops) - median([*heights.values(), dense]), self.y.grain)
        ends = [sign * end for e in self.front if heights[e.hash] >= usual for end in self.span(e)]
        high, low = max([*tops, *ends]), min([dense, *ends])
        span = max(high - low, self.y.grain)
        range_ = sorted((sign * (low - 0.12 * span), sign * (high + 0.08 * span)))
        return max(range_[0], self.y.ends[0]), min(range_[1], self.y.ends[1])

    def hidden(self) -> int:
        """Return how many evaluations are outside `view`."""
        low, high = self.view()
        return sum(not low <= self.height(e) <= high for e in [*self.front, *self.others])

    def missing(self) -> str:
        """Return a sentence on what the plot does not show; empty if it shows everything."""
        hidden, stopped = self.hidden(), self.stopped
        parts = [f"{hidden} outside the plot"] * bool(hidden) + [f"{stopped} stopped early, not drawn"] * bool(
            stopped
        )
        return "; ".join(parts)

    def dense_height_of(self, confirmed: Confirmation | None) -> float:
        """Return the dense model's value on the y axis by a confirmed score; if None, by the search's own score."""
        if self.y.dense is not None:
            return self.y.dense
        spec = self.study.spec
        top1, loss = (confirmed.top1, confirmed.loss) if confirmed else (spec.dense_top1, spec.dense_loss)
        return self.y.scale * {"top1": top1, "loss": loss}[self.y.objective]


def _on_axis(value: float | None) -> float:
    if value is None:
        raise ValueError("the evaluation has no value on this axis")
    return value


def flops_text(flops: int) -> str:
    """Return FLOPs in three digits and a unit, such as `3.58 G`."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if flops >= scale:
            value = flops / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return str(flops)


@dataclass(frozen=True)
class BlockTokens:
    """How many patch tokens one block processes, of how many its stage has."""

    block: int
    tokens: int
    of: int
    first: bool  # whether the number differs from the previous block's

    @property
    def share(self) -> float:
        """The tokens as a share in 0..1."""
        return self.tokens / self.of


def tokens_by_block(layout: TokenLayout, schedule: PruningSchedule) -> list[BlockTokens]:
    """Return the number of patch tokens that each block processes, from the first block to the last.

    >>> from spaces import Stage
    >>> layout = TokenLayout("small", (28, 28), (Stage(4, 7, 7),))
    >>> [block.tokens for block in tokens_by_block(layout, PruningSchedule.parse("2:0.5"))]
    [49, 49, 25, 25]
    """
    grids = [stage.tokens for stage in layout.stages for _ in range(stage.blocks)]
    found: list[BlockTokens] = []
    for count, grid in zip(layout.worked_on(schedule), grids, strict=True):
        first = not found or found[-1].tokens != count
        found.append(BlockTokens(len(found) + 1, count, grid, first))
    return found


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spaced, the first and the last included.

    >>> evenly_spaced(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
