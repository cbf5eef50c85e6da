"""What the plots show, as plain numbers: the front, the rest, the dense point, the budget, tokens by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from results.objectives import objective_value, objectives_front
from results.records import Confirmation, Evaluation, Study
from results.report.axes import Axis, axes
from spaces import PruningSchedule, TokenLayout

T = TypeVar("T")
MANY = 1500  # points; beyond, elements of their own are too slow for a browser


@dataclass(frozen=True)
class FrontChart:
    """A study's evaluations sorted for a plot of how well a schedule does against what it costs.

    Attributes:
        study: the study.
        x: the cost.
        y: how well a schedule does.
        front: the best by the study's objectives, cheapest first.
        others: done, but not among them.
        tuned: those of all with a fine-tuned top-1; empty where y is not top-1.
        stopped: how many were stopped; they have no score to draw.
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
        """Sort the evaluations; those that lack a value on an axis have no place in the plot."""
        x, y = axes(study.spec.objectives, study.spec.metric)
        done = [e for e in evaluations if e.state == "done" and None not in (x.value(e), y.value(e))]
        points = [[objective_value(e, name) for name in study.spec.objectives] for e in done]
        chosen = set(objectives_front(points, study.spec.objectives))
        return cls(
            study,
            x,
            y,
            front=sorted((done[i] for i in chosen), key=lambda e: (_drawn(x.value(e)), e.number)),
            others=[e for i, e in enumerate(done) if i not in chosen],
            tuned=[e for e in done if y.objective == "top1" and e.finetuned_top1 is not None],
            stopped=sum(e.state == "stopped" for e in evaluations),
            dense_confirmed=dense_confirmed,
        )

    @property
    def budget_ratio(self) -> float:
        """The budget as a share of the dense FLOPs."""
        return self.study.spec.limit / self.study.spec.dense_flops

    @property
    def many(self) -> bool:
        """Whether there are so many points that a page draws them with WebGL."""
        return len(self.others) > MANY

    @property
    def line(self) -> bool:
        """Whether the front is a line: both its objectives, and no others, are drawn."""
        return {self.x.objective, self.y.objective} == set(self.study.spec.objectives)

    @property
    def front_name(self) -> str:
        """What the best are called in a legend."""
        name = "Pareto front" if len(self.study.spec.objectives) > 1 else "best"
        return f"{name}, 95 %" if any(self.y.interval(e) for e in self.front) else name

    @property
    def confirming(self) -> bool:
        """Whether the study has confirmed scores, so that one without is worth a mark."""
        return self.study.confirmed > 0

    @property
    def dense_top1(self) -> float:
        """The dense model's standing top-1 in 0..1."""
        return self.study.spec.dense_top1 if self.dense_confirmed is None else self.dense_confirmed.top1

    @property
    def dense_height(self) -> float:
        """Where the dense model stands on the y axis, as shown."""
        return self.dense_height_of(self.dense_confirmed)

    def cost(self, evaluation: Evaluation) -> float:
        """Return where an evaluation of the chart stands on the x axis."""
        return _drawn(self.x.value(evaluation))

    def height(self, evaluation: Evaluation) -> float:
        """Return where an evaluation of the chart stands on the y axis, as shown."""
        return _drawn(self.y.value(evaluation))

    def span(self, evaluation: Evaluation) -> tuple[float, float]:
        """Return the ends of the error bar of an evaluation of the chart; its height twice if it has none."""
        height = self.height(evaluation)
        return self.y.interval(evaluation) or (height, height)

    def view(self) -> tuple[float, float]:
        """Return the range of y that shows the dense model, and the front with its error bars, well.

        A search also tries hopeless schedules, and the cheapest of them are on the front; drawn in full they
        would press the rest flat. So the range ends where a point is several times further from the best than
        the middle of the front is.
        """
        sign = 1.0 if self.y.rising else -1.0  # as if more were always better
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
        """Count the evaluations outside of `view`."""
        low, high = self.view()
        return sum(not low <= self.height(e) <= high for e in [*self.front, *self.others])

    def missing(self) -> str:
        """Return in words what the plot of `view` does not show; empty if it shows all."""
        hidden, stopped = self.hidden(), self.stopped
        parts = [f"{hidden} outside the plot"] * bool(hidden) + [f"{stopped} stopped early, not drawn"] * bool(
            stopped
        )
        return "; ".join(parts)

    def dense_height_of(self, confirmed: Confirmation | None) -> float:
        """Return where the dense model stands by a confirmed score, or by the search's own if None."""
        if self.y.dense is not None:
            return self.y.dense
        spec = self.study.spec
        top1, loss = (confirmed.top1, confirmed.loss) if confirmed else (spec.dense_top1, spec.dense_loss)
        return self.y.scale * {"top1": top1, "loss": loss}[self.y.objective]


def _drawn(value: float | None) -> float:
    if value is None:
        raise ValueError("an evaluation that has no place in the chart")
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
    """How many patch tokens one block works on, of how many there are in its stage."""

    block: int
    tokens: int
    of: int
    first: bool  # whether the number differs from the block before

    @property
    def share(self) -> float:
        """The tokens as a share in 0..1."""
        return self.tokens / self.of


def tokens_by_block(layout: TokenLayout, schedule: PruningSchedule) -> list[BlockTokens]:
    """Return the patch tokens that each block works on, from the first block to the last."""
    grids = [stage.tokens for stage in layout.stages for _ in range(stage.blocks)]
    found: list[BlockTokens] = []
    for count, grid in zip(layout.worked_on(schedule), grids, strict=True):
        first = not found or found[-1].tokens != count
        found.append(BlockTokens(len(found) + 1, count, grid, first))
    return found


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread, with the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
