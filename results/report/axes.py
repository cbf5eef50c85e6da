"""The two axes of a plot of the front: which objective each shows, and how its values are written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from results.metrics import METRICS, TOP1
from results.objectives import OBJECTIVES, objective_value, share_interval
from results.records import Evaluation


@dataclass(frozen=True)
class Axis:
    """An objective as an axis of a plot.

    Attributes:
        objective: a name from `OBJECTIVES`.
        name: its name in a sentence.
        title: the title along the axis.
        dense: the dense model's value by definition, as shown; None if it has to be measured.
        scale: factor from a recorded value to the one shown.
        unit: suffix of a value.
        digits: decimal places of a value.
        grain: the smallest range, as shown, that the axis is zoomed in to.
        ends: the lowest and the highest value that the axis may show.
    """

    objective: str
    name: str
    title: str
    dense: float | None = None
    scale: float = 1.0
    unit: str = ""
    digits: int = 3
    grain: float = 0.01
    ends: tuple[float, float] = (-float("inf"), float("inf"))

    @property
    def rising(self) -> bool:
        """Whether higher is better."""
        return OBJECTIVES[self.objective]

    def value(self, evaluation: Evaluation) -> float | None:
        """Return the reported value of a finished evaluation, as shown; None if it has none."""
        if self.objective == "flops":
            return evaluation.flops_ratio
        found = objective_value(evaluation, self.objective)
        return None if found is None else self.scale * found

    def searched(self, evaluation: Evaluation) -> float:
        """Return the value that the search measured for a finished evaluation, as shown."""
        return self.scale * float(getattr(evaluation, self.objective))

    def interval(self, evaluation: Evaluation) -> tuple[float, float] | None:
        """Return the 95 % interval of `value`, as shown; None if it has none."""
        found = share_interval(evaluation, self.objective)
        return None if found is None else (self.scale * found[0], self.scale * found[1])


_share = partial(Axis, scale=100.0, unit=" %", digits=2, grain=1.0, ends=(-2.0, 102.0))
X_AXES = {
    "flops": Axis("flops", "FLOPs", "FLOPs as a share of the dense model's", dense=1.0),
    "latency": Axis("latency", "latency", "latency as a share of the dense model's", dense=1.0),
}
Y_AXES = {
    "top1": _share("top1", "top-1", "top-1, %"),
    "agreement": _share("agreement", "agreement", "agreement with the dense model, %", dense=100.0),
    "loss": Axis("loss", "cross-entropy", "mean cross-entropy", digits=4),
}


def axes(objectives: Sequence[str], metric: str = TOP1.name) -> tuple[Axis, Axis]:
    """Return the axes (x, y) of a study's plot: the cost of a schedule, and its quality.

    x is FLOPs, or latency if the study optimises latency and not FLOPs. y is the first of score, agreement and loss
    that the study optimises; by default the score, which `metric` names.
    """
    x = X_AXES["latency" if "latency" in objectives and "flops" not in objectives else "flops"]
    y = next((axis for name, axis in Y_AXES.items() if name in objectives), Y_AXES["top1"])
    if y.objective == "top1":
        label = METRICS[metric].label
        y = replace(y, name=label, title=f"{label}, %")
    return x, y
