"""What the plots show, as plain numbers: the front, the rest, the dense point, the budget, tokens by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from results.front import pareto_front
from results.records import Evaluation, Study
from spaces import PruningSchedule, TokenLayout

T = TypeVar("T")


@dataclass(frozen=True)
class FrontChart:
    """A study's evaluations sorted for a plot of top-1 against FLOPs.

    Attributes:
        study: the study.
        front: on the Pareto front, cheapest first.
        others: finished, but dominated.
        tuned: those of all with a fine-tuned top-1.
    """

    study: Study
    front: list[Evaluation]
    others: list[Evaluation]
    tuned: list[Evaluation]

    @classmethod
    def of(cls, study: Study, evaluations: Sequence[Evaluation]) -> "FrontChart":
        """Sort the finished ones of `evaluations`; failed ones have no place in the plot."""
        done = [e for e in evaluations if e.state == "done"]
        indices = pareto_front([(e.flops, percent(e)) for e in done])
        chosen = set(indices)
        others = [e for i, e in enumerate(done) if i not in chosen]
        return cls(study, [done[i] for i in indices], others, [e for e in done if e.finetuned_top1 is not None])

    @property
    def budget_ratio(self) -> float:
        """The budget as a share of the dense FLOPs."""
        return self.study.spec.limit / self.study.spec.dense_flops

    def view(self) -> tuple[float, float]:
        """Return the range of top-1 in per cent that shows the front well.

        A search also tries hopeless schedules, and the cheapest of them are on the front; drawn in full they
        would press the rest flat. So the range ends where a point is several times further from the best than
        the middle of the front is.
        """
        heights = [percent(e) for e in self.front] + [100 * self.study.spec.dense_top1]
        high = max(heights + [100 * e.finetuned_top1 for e in self.tuned if e.finetuned_top1 is not None])
        usual = high - 4 * max(high - median(heights), 1.0)
        low = min([height for height in heights if height >= usual], default=high)
        span = max(high - low, 1.0)
        return max(low - 0.25 * span, -2.0), min(high + 0.12 * span, 102.0)

    def hidden(self) -> int:
        """Count the evaluations below `view`."""
        low, _ = self.view()
        return sum(percent(e) < low for e in [*self.front, *self.others])

    def as_dict(self) -> dict[str, Any]:
        """Return what the page's script draws; all texts still unescaped."""
        spec = self.study.spec
        return {
            "front": [_point(e) for e in self.front],
            "others": [_point(e) for e in self.others],
            "tuned": [
                _point(e) | {"y": 100 * e.finetuned_top1, "before": percent(e)}
                for e in self.tuned
                if e.finetuned_top1 is not None
            ],
            "dense": {"x": 1.0, "y": 100 * spec.dense_top1, "flops": flops_text(spec.dense_flops)},
            "budget": {"x": self.budget_ratio, "label": f"budget {spec.budget}"},
            "view": self.view(),
            "hidden": self.hidden(),
        }


def percent(evaluation: Evaluation) -> float:
    """Return top-1 in per cent; a NaN if there is none."""
    return float("nan") if evaluation.top1 is None else 100 * evaluation.top1


def _point(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "x": evaluation.flops_ratio,
        "y": percent(evaluation),
        "flops": flops_text(evaluation.flops),
        "schedule": schedule_lines(evaluation.schedule),
        "agreement": None if evaluation.agreement is None else 100 * evaluation.agreement,
        "latency": evaluation.latency_ms,
        "hash": evaluation.hash,
    }


def schedule_lines(schedule: PruningSchedule, steps_a_line: int = 4) -> list[str]:
    """Return the text form in lines short enough for a label."""
    if schedule.dense:
        return ["dense"]
    steps = [f"{step.after}:{step.keep:.4g}" for step in schedule.steps]
    lines = [", ".join(steps[i : i + steps_a_line]) for i in range(0, len(steps), steps_a_line)]
    return lines + [f"{name} {value}" for name, value in schedule.method.changes.items()]


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
    after = layout.tokens(schedule)
    found: list[BlockTokens] = []
    for stage in layout.stages:
        start = len(found)
        counts = [stage.tokens, *after[start : start + stage.blocks - 1]]
        for count in counts:
            first = not found or found[-1].tokens != count
            found.append(BlockTokens(len(found) + 1, count, stage.tokens, first))
    return found


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread, with the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
