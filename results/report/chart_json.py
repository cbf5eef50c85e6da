"""The chart of the front as JSON for the script of the page. Text is not escaped here."""

from typing import Any

from results.records import Confirmation, Evaluation
from results.report.axes import Axis
from results.report.front_chart import FrontChart, flops_text
from spaces import PruningSchedule


def chart_json(chart: FrontChart) -> dict[str, Any]:
    """Return the JSON that `chart.js` reads."""
    flops_drawn = chart.x.objective == "flops"
    return {
        "axes": {"x": {"title": chart.x.title, "name": chart.x.name}, "y": _y_axis(chart.y)},
        "line": chart.line,
        "many": chart.many,
        "name": chart.front_name,
        "front": [_point(chart, e) for e in chart.front],
        "others": [_point(chart, e) for e in chart.others],
        "tuned": [_tuned_point(chart, e) for e in chart.tuned],
        "dense": _dense_point(chart, chart.dense_confirmed),
        "budget": {"x": chart.budget_ratio, "label": f"budget {chart.study.spec.budget}"} if flops_drawn else None,
        "view": chart.view(),
        "hidden": chart.hidden(),
    }


def schedule_lines(schedule: PruningSchedule, steps_per_line: int = 4) -> list[str]:
    """Return the text form of a schedule in lines that are short enough for a label.

    >>> schedule_lines(PruningSchedule.parse("5:0.8,10:0.7;importance=l2"))
    ['5:0.8, 10:0.7', 'importance l2']
    """
    if schedule.dense:
        return ["dense"]
    steps = [
        f"{step.after}:{step.keep:.4g}" + (f" {step.context}" if step.context else "") for step in schedule.steps
    ]
    lines = [", ".join(steps[i : i + steps_per_line]) for i in range(0, len(steps), steps_per_line)]
    return lines + [f"{name} {value}" for name, value in schedule.method.changes.items()]


def _y_axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": axis.title,
        "name": axis.name,
        "unit": axis.unit,
        "digits": axis.digits,
        "rising": axis.rising,
    }


def _point(chart: FrontChart, e: Evaluation) -> dict[str, Any]:
    """Return a point; `search` holds the search's own score if the reported one is a confirmation."""
    interval = chart.y.interval(e)
    agreement = e.reported.agreement
    return {
        "x": chart.cost(e),
        "y": chart.height(e),
        "low": interval and interval[0],
        "high": interval and interval[1],
        "images": e.reported.images,
        "search": {"y": chart.y.searched(e), "images": e.images} if e.confirmed else None,
        "unconfirmed": chart.confirming and e.confirmed is None,
        "share": e.flops_ratio,
        "flops": flops_text(e.flops),
        "schedule": schedule_lines(e.schedule),
        "agreement": None if agreement is None or chart.y.objective == "agreement" else 100 * agreement,
        "latency": e.reported.latency_ms,
        "latency_ratio": e.reported.latency_ratio,
        "hash": e.hash,
        "number": e.number,
    }


def _tuned_point(chart: FrontChart, e: Evaluation) -> dict[str, Any]:
    """Return the point of an evaluation after fine-tuning; `before` is its score before, on the same images `on`."""
    assert e.finetuned is not None
    tuned: dict[str, Any] = {"y": 100 * e.finetuned.top1, "before": 100 * chart.before_tuning(e)}
    tuned |= {"on": e.finetuned.scored_on, "spread": e.finetuned.spread, "images": e.finetuned.images}
    return _point(chart, e) | tuned | {"low": None, "high": None, "search": None}


def _dense_point(chart: FrontChart, confirmed: Confirmation | None) -> dict[str, Any]:
    spec = chart.study.spec
    searched = {"y": chart.dense_height_of(None), "images": spec.images}
    return {
        "x": chart.x.dense,
        "y": chart.dense_height,
        "flops": flops_text(spec.dense_flops),
        "search": None if confirmed is None else searched,
        "images": spec.images if confirmed is None else confirmed.images,
    }
