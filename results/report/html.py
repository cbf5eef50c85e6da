"""Self-contained HTML pages from `templates/`: scripts and styles are inline, nothing is fetched, text is escaped."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from results.files import write_whole
from results.objectives import share_interval
from results.records import Evaluation
from results.report.chart_json import chart_json
from results.report.front_chart import flops_text


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Render a template and write the page atomically.

    Values are escaped for the place where they appear: text, attributes or script data.

    Args:
        path: the file to write.
        template: a file in `templates/`.
        values: the variables of the template.

    Raises:
        PrunefrontError: the file cannot be written.
    """
    from plotly.offline import get_plotlyjs  # 5 MB of text, needed for pages only

    page = (
        _environment()
        .get_template(template)
        .render(plotly=get_plotlyjs(), made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **values)
    )
    write_whole(path, page.encode(errors="replace"))  # file names need not be valid Unicode


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("results.report"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt variable is an error, not an empty string
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "chart_json": chart_json,
        "flops": flops_text,
        "percent": _percent,
        "points": _points,
        "grouped": _grouped,
        "duration": _duration,
        "interval": _interval,
    }
    return environment


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _interval(evaluation: Evaluation) -> str:
    """Return the 95 % interval of top-1 in per cent."""
    ends = share_interval(evaluation, "top1")
    return "–" if ends is None else f"{_percent(ends[0])}–{_percent(ends[1])}"


def _grouped(number: int) -> str:
    return f"{number:,}"


def _points(difference: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    points = 100 * difference
    return f"{'−' if points < -0.005 else '+' if points > 0.005 else '±'}{abs(points):.1f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
