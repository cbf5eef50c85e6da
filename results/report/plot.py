"""The front of a study as a picture: an HTML page to move about in, or a PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

from results.files import write_whole
from results.records import Confirmation, Evaluation, Study
from results.report.front_chart import FrontChart
from spaces.errors import UsageError


def plot_front(
    path: str | Path,
    study: Study,
    evaluations: Sequence[Evaluation],
    dense_confirmed: Confirmation | None = None,
) -> None:
    """Plot the front with 95 % error bars, all evaluations, the dense point and the budget.

    It is top-1 against FLOPs, or the study's own objectives where these are others.

    Args:
        path: `.html` for one self-contained page, `.png` for a picture.
        study: the study.
        evaluations: all of them; the front is found here.
        dense_confirmed: the dense model's confirmed score, if there is one.

    Raises:
        UsageError: another ending.
        PrunefrontError: the file cannot be written.
    """
    check_plot_path(path)
    chart = FrontChart.of(study, evaluations, dense_confirmed)
    if Path(path).suffix.lower() == ".png":
        write_whole(path, _png(chart))
        return
    from results.report.html import write_page  # templates and plotly, for this ending alone

    write_page(path, "plot.html", study=study, spec=study.spec, chart=chart)


def check_plot_path(path: str | Path) -> None:
    """Raise a UsageError unless the file's ending is one that `plot_front` writes."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".html", ".png"):
        raise UsageError(f"plot {path}: ends in {suffix or 'nothing'!r}; use .html or .png")


def _png(chart: FrontChart) -> bytes:
    """Draw without pyplot: no display, no state shared with anybody."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spec = chart.study.spec
    ink, muted, accent, warm, faint = "#1b1f24", "#5d6670", "#0f6b63", "#b4531a", "#b9bfc5"
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained", facecolor="white")
    axes = figure.subplots()
    low, high = chart.view()

    if chart.x.objective == "flops":
        axes.axvline(chart.budget_ratio, color=muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"budget {spec.budget}",
            (chart.budget_ratio, low),
            xytext=(-4, 6),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom",
            color=muted,
            fontsize=8,
        )
    axes.scatter(
        [chart.cost(e) for e in chart.others],
        [chart.height(e) for e in chart.others],
        s=14,
        color=faint,
        linewidths=0,
        label="evaluations",
    )
    costs, heights = [chart.cost(e) for e in chart.front], [chart.height(e) for e in chart.front]
    if chart.line:
        axes.step(costs, heights, where="post", color=accent, linewidth=1.4, alpha=0.6)
    spans = [chart.span(e) for e in chart.front]
    axes.vlines(costs, [end for end, _ in spans], [end for _, end in spans], color=accent, linewidth=1, alpha=0.45)
    for unconfirmed, label in ((False, chart.front_name), (True, "not confirmed")):
        some = [e for e in chart.front if (chart.confirming and e.confirmed is None) == unconfirmed]
        if some or not unconfirmed:
            axes.scatter(
                [chart.cost(e) for e in some],
                [chart.height(e) for e in some],
                s=34,
                facecolors="white" if unconfirmed else accent,
                edgecolors=accent,
                linewidths=1.2,
                zorder=3,
                label=label,
            )
    for number, e in enumerate(chart.tuned):
        tuned = 100 * (e.finetuned_top1 or 0.0)
        axes.plot([chart.cost(e)] * 2, [chart.y.searched(e), tuned], color=warm, linewidth=1, alpha=0.6)
        label = "_" if number else "fine-tuned"
        axes.scatter([chart.cost(e)], [tuned], s=38, marker="D", color=warm, zorder=4, label=label)
    axes.scatter([1.0], [chart.dense_height], s=70, marker="*", color=ink, zorder=4, label="dense model")

    axes.set_ylim(low, high)
    axes.set_xlabel("\n".join(filter(None, (chart.x.title, chart.missing()))), color=muted)
    axes.set_ylabel(chart.y.title, color=muted)
    axes.set_title(
        f"{_plain(spec.name)}: {_plain(spec.model)} on {_plain(spec.shown_data)}", loc="left", color=ink, fontsize=11
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d5d2cb")
    axes.tick_params(colors=muted, labelsize=9)
    axes.grid(color="#eeece7", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=ink)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plain(text: str) -> str:
    """A name is no formula: matplotlib sets what stands between two dollars as mathematics."""
    return text.replace("$", r"\$")
