"""The front of a study as a picture: an HTML page to move about in, or a PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

from results.charts import FrontChart, percent
from results.export import write_whole
from results.records import Evaluation, Study
from spaces.errors import UsageError


def plot_front(path: str | Path, study: Study, evaluations: Sequence[Evaluation]) -> None:
    """Plot top-1 against FLOPs with the front, all evaluations, the dense point and the budget.

    Args:
        path: `.html` for one self-contained page, `.png` for a picture.
        study: the study.
        evaluations: all of them; the front is found here.

    Raises:
        UsageError: another ending.
        PrunefrontError: the file cannot be written.
    """
    check_plot_path(path)
    chart = FrontChart.of(study, evaluations)
    if Path(path).suffix.lower() == ".png":
        write_whole(path, _png(chart))
        return
    from results.pages import write_page  # templates and plotly, for this ending alone

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
        [e.flops_ratio for e in chart.others],
        [percent(e) for e in chart.others],
        s=14,
        color=faint,
        linewidths=0,
        label="evaluations",
    )
    ratios, heights = [e.flops_ratio for e in chart.front], [percent(e) for e in chart.front]
    axes.step(ratios, heights, where="post", color=accent, linewidth=1.4, alpha=0.6)
    axes.scatter(ratios, heights, s=34, color=accent, zorder=3, label="Pareto front")
    for number, e in enumerate(chart.tuned):
        tuned = 100 * (e.finetuned_top1 or 0.0)
        axes.plot([e.flops_ratio] * 2, [percent(e), tuned], color=warm, linewidth=1, alpha=0.6)
        label = "_" if number else "fine-tuned"
        axes.scatter([e.flops_ratio], [tuned], s=38, marker="D", color=warm, zorder=4, label=label)
    axes.scatter([1.0], [100 * spec.dense_top1], s=70, marker="*", color=ink, zorder=4, label="dense model")

    axes.set_ylim(low, high)
    axes.set_xlabel("FLOPs as a share of the dense model's", color=muted)
    axes.set_ylabel("top-1, %", color=muted)
    axes.set_title(
        f"{_plain(spec.name)}: {_plain(spec.model)} on {_plain(spec.data)}", loc="left", color=ink, fontsize=11
    )
    if hidden := chart.hidden():
        axes.annotate(
            f"{hidden} more below", (0.99, 0.02), xycoords="axes fraction", ha="right", color=muted, fontsize=8
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d5d2cb")
    axes.tick_params(colors=muted, labelsize=9)
    axes.grid(color="#eeece7", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 0.04), labelcolor=ink)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plain(text: str) -> str:
    """A name is no formula: matplotlib sets what stands between two dollars as mathematics."""
    return text.replace("$", r"\$")
