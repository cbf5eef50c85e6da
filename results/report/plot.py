"""The plot of a study's front: an interactive HTML page, or a PNG."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from results.files import write_whole
from results.records import Confirmation, Evaluation, Study
from results.report.front_chart import FrontChart
from spaces.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _ACCENT, _WARM, _FAINT = "#1b1f24", "#5d6670", "#0f6b63", "#b4531a", "#b9bfc5"


def plot_front(
    path: str | Path,
    study: Study,
    evaluations: Sequence[Evaluation],
    dense_confirmed: Confirmation | None = None,
) -> None:
    """Plot the front with 95 % error bars, all evaluations, the dense model and the budget.

    The axes are top-1 against FLOPs, unless the study has other objectives; see `results.report.axes`.

    To plot a study from a store:

        plot_front("front.png", study, store.evaluations(study, done_only=False))

    Args:
        path: a file that ends in `.html` (one self-contained, interactive page) or `.png`.
        study: the study.
        evaluations: all its evaluations; the front is computed from them.
        dense_confirmed: the dense model's confirmed score, if there is one.

    Raises:
        UsageError: the file has another ending.
        PrunefrontError: the file cannot be written.
    """
    check_plot_path(path)
    chart = FrontChart.of(study, evaluations, dense_confirmed)
    if Path(path).suffix.lower() == ".png":
        write_whole(path, _png(chart))
        return
    from results.report.html import write_page  # loads templates and plotly, which a PNG does not need

    write_page(path, "plot.html", study=study, spec=study.spec, chart=chart)


def check_plot_path(path: str | Path) -> None:
    """Raise a UsageError unless `plot_front` can write a file with this ending."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".html", ".png"):
        raise UsageError(f"plot {path}: ends in {suffix or 'nothing'!r}; use .html or .png")


def _png(chart: FrontChart) -> bytes:
    """Draw the chart without pyplot, which would need a display and share global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained", facecolor="white")
    axes = figure.subplots()
    if chart.x.objective == "flops":
        _draw_budget(axes, chart)
    axes.scatter(
        [chart.cost(e) for e in chart.others],
        [chart.height(e) for e in chart.others],
        s=14,
        color=_FAINT,
        linewidths=0,
        label="evaluations",
    )
    _draw_front(axes, chart)
    _draw_tuned(axes, chart)
    axes.scatter([1.0], [chart.dense_height], s=70, marker="*", color=_INK, zorder=4, label="dense model")
    _style(axes, chart)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_budget(axes: "Axes", chart: FrontChart) -> None:
    """Draw the budget as a dashed line across the plot."""
    axes.axvline(chart.budget_ratio, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"budget {chart.study.spec.budget}",
        (chart.budget_ratio, chart.view()[0]),
        xytext=(-4, 6),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        color=_MUTED,
        fontsize=8,
    )


def _draw_front(axes: "Axes", chart: FrontChart) -> None:
    """Draw the front as a staircase with error bars; points without a confirmed score are hollow."""
    costs, heights = [chart.cost(e) for e in chart.front], [chart.height(e) for e in chart.front]
    if chart.line:
        axes.step(costs, heights, where="post", color=_ACCENT, linewidth=1.4, alpha=0.6)
    spans = [chart.span(e) for e in chart.front]
    axes.vlines(costs, [low for low, _ in spans], [high for _, high in spans], color=_ACCENT, linewidth=1, alpha=0.45)
    for unconfirmed, label in ((False, chart.front_name), (True, "not confirmed")):
        points = [e for e in chart.front if (chart.confirming and e.confirmed is None) == unconfirmed]
        if points or not unconfirmed:
            axes.scatter(
                [chart.cost(e) for e in points],
                [chart.height(e) for e in points],
                s=34,
                facecolors="white" if unconfirmed else _ACCENT,
                edgecolors=_ACCENT,
                linewidths=1.2,
                zorder=3,
                label=label,
            )


def _draw_tuned(axes: "Axes", chart: FrontChart) -> None:
    """Draw each fine-tuned score, joined to the score before fine-tuning."""
    for number, e in enumerate(chart.tuned):
        tuned = 100 * (e.finetuned_top1 or 0.0)
        axes.plot([chart.cost(e)] * 2, [100 * chart.before_tuning(e), tuned], color=_WARM, linewidth=1, alpha=0.6)
        label = (
            "_" if number else f"fine-tuned ({chart.tuned_on})"
        )  # matplotlib leaves labels with an underscore out of the legend
        axes.scatter([chart.cost(e)], [tuned], s=38, marker="D", color=_WARM, zorder=4, label=label)


def _style(axes: "Axes", chart: FrontChart) -> None:
    """Set the range, the titles, the grid and the legend."""
    spec = chart.study.spec
    title = f"{_plain(spec.name)}: {_plain(spec.model)} on {_plain(spec.shown_data)}"
    axes.set_ylim(*chart.view())
    axes.set_xlabel("\n".join(filter(None, (chart.x.title, chart.missing()))), color=_MUTED)
    axes.set_ylabel(chart.y.title, color=_MUTED)
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d5d2cb")
    axes.tick_params(colors=_MUTED, labelsize=9)
    axes.grid(color="#eeece7", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=_INK)


def _plain(text: str) -> str:
    """Escape dollar signs, between which matplotlib would set a formula."""
    return text.replace("$", r"\$")
