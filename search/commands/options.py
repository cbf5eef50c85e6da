"""Options that several commands share, how their values are read, and how a front is printed."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from results.metrics import METRICS, TOP1
from search.commands.flags import shared_option
from search.commands.output import Column, Columns, Format, compact_flops, print_rows, say, share_text
from search.config import DEFAULT_DB, SearchConfig, SearchOutputs
from spaces import FlopsBudget
from spaces.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from results.front_scores import FrontScores


def file_path(text: str) -> Path:
    """Read the name of a file on the command line; typer.BadParameter, which names the option, if it is none."""
    if not text:
        raise typer.BadParameter("must not be empty; name a file")
    if text == "-":
        raise typer.BadParameter("'-' stands for no stream here; name a file, such as /dev/stdout")
    return Path(text)


def folder_path(text: str) -> Path:
    """Read the name of a folder on the command line; typer.BadParameter, which names the option, if it is none."""
    if not text:
        raise typer.BadParameter("must not be empty; name a folder, such as . for this one")
    return Path(text)


Model = Annotated[str, shared_option(SearchConfig, "model")]
Data = Annotated[str, shared_option(SearchConfig, "data")]
ClassOrder = Annotated[str | None, shared_option(SearchConfig, "class_order")]
Checkpoint = Annotated[str | None, shared_option(SearchConfig, "checkpoint")]
ImgSize = Annotated[str | None, shared_option(SearchConfig, "img_size")]
Images = Annotated[int | None, shared_option(SearchConfig, "images")]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="val|test|rest",
        help="Split of the images: val, test, or rest (images of val that the search did not use).",
        show_default=False,
    ),
]
Skip = Annotated[
    int | None,
    typer.Option("--skip", metavar="N", help="Leave out the first N images of the split.", show_default=False),
]
BatchSize = Annotated[int, shared_option(SearchConfig, "batch_size")]
Database = Annotated[str | None, shared_option(SearchOutputs, "db")]
Study = Annotated[str, typer.Option("--study", metavar="S", help="Name of the study.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print results.", case_sensitive=False)]
MaxFlops = Annotated[
    str | None,
    typer.Option("--max-flops", metavar="B", help="A share of the dense FLOPs (0.6), or FLOPs (3.6G, 900M)."),
]
MinTop1 = Annotated[float | None, typer.Option("--min-top1", metavar="X", help="The least top-1, from 0 to 1.")]
Schedule = Annotated[
    str,
    typer.Option(
        "--schedule", metavar="TEXT|FILE", help="A schedule, such as 5:0.8,10:0.8, or a JSON file; empty is dense."
    ),
]

FRONT_COLUMNS = {
    "schedule": Column("schedule", lambda text: text or "(dense)"),
    "top1": Column("top-1", share_text, right=True),
    "finetuned_top1": Column("fine-tuned", share_text, right=True),
    "flops": Column("FLOPs", compact_flops, right=True),
    "flops_ratio": Column("of dense", share_text, right=True),
    "loss": Column("loss", share_text, right=True),
    "latency_ms": Column("ms/image", lambda ms: f"{ms:.2f}", right=True),
    "images": Column("images", right=True),
    "hash": Column("hash"),
}
INTERVAL_COLUMNS = {"interval": Column("95 % interval", right=True)}
DIFFERENCE_COLUMNS = {"difference": Column("points over dense", right=True)}
LATENCY_COLUMNS = {"latency_ratio": Column("ms of dense", share_text, right=True)}
FINETUNED_COLUMNS = {
    "finetuned_range": Column("range (runs)", right=True),
    "finetuned_on": Column("fine-tuned on"),
}
CONFIRMED_COLUMNS = {"shown_confirmed": Column("confirmed")}


def print_front(
    rows: Sequence[Mapping[str, Any]],
    form: Format,
    *,
    marked: bool,
    columns: Columns = FRONT_COLUMNS,
    empty: str = "",
) -> None:
    """Print rows of `front_row`; a table also shows the interval of top-1, and latency ratios where there are any.

    Beside fine-tuned scores it names their images, which may be others than those of top-1.

    Args:
        rows: evaluations of one study.
        form: table, JSON or CSV.
        marked: whether the study has confirmed scores, so that a table tells which ones are.
        columns: the columns of the table, `top1` among them.
        empty: as in `print_rows`.
    """
    if form is not Format.table:
        print_rows(rows, columns, form)
        return
    columns = scored(columns, next((row["metric"] for row in rows), TOP1.name))
    shown: dict[str, Column] = {}
    for name, column in columns.items():
        shown[name] = column
        if name == "top1":
            shown |= INTERVAL_COLUMNS | (CONFIRMED_COLUMNS if marked else {})
            if any(row.get("dense_difference") is not None for row in rows):
                shown |= DIFFERENCE_COLUMNS
        if name == "finetuned_top1" and any(row["finetuned_runs"] for row in rows):
            shown |= FINETUNED_COLUMNS
        if name == "latency_ms" and any(row["latency_ratio"] is not None for row in rows):
            shown |= LATENCY_COLUMNS
    texts = [{**_shown(row), "finetuned_range": _range_text(row)} for row in rows]
    print_rows([{**row, **more} for row, more in zip(rows, texts, strict=True)], shown, form, empty=empty)


def about_front(scores: "FrontScores", points: int) -> list[str]:
    """Return the lines that say what the confirmed scores of a front are of; none if nothing is confirmed."""
    if scores.images is None:
        return []
    chose = ", with those of the search, which chose the front" if scores.searched else ", which chose nothing"
    lines = [f"confirmed on {scores.images}{chose}"]
    if scores.differences:
        lines.append(f"points over dense: paired by images; the 95 % intervals hold for all {points} at once")
    if (volume := scores.hypervolume) is not None:
        lines.append(f"hypervolume on these images: {volume.value:.4f} ({volume.low:.4f}–{volume.high:.4f})")
    return lines


def scored(columns: Columns, metric: str) -> Columns:
    """Return columns whose headings name the metric of a study or model instead of top-1."""
    label = METRICS[metric].label
    return {
        name: replace(column, heading=column.heading.replace(TOP1.label, label)) for name, column in columns.items()
    }


def _shown(row: Mapping[str, Any]) -> dict[str, str | None]:
    low, high = row["top1_low"], row["top1_high"]
    confirmed = ("dominated" if row.get("dominated") else "yes") if row["confirmed"] else "no"
    difference = row.get("dense_difference")
    return {
        "interval": None if low is None else f"{share_text(low)}–{share_text(high)}",
        "shown_confirmed": confirmed,
        "difference": None
        if difference is None
        else f"{100 * difference:+.2f} ({100 * row['dense_difference_low']:+.2f} to "
        f"{100 * row['dense_difference_high']:+.2f})",
    }


def _range_text(row: Mapping[str, Any]) -> str | None:
    if row["finetuned_runs"] < 2:
        return None
    return f"{share_text(row['finetuned_min'])}–{share_text(row['finetuned_max'])} ({row['finetuned_runs']})"


def note_ray_address(given: str | None, what: str) -> None:
    """Say that `what` runs on this machine although RAY_ADDRESS names a cluster, unless an address is given."""
    if given is None and (address := os.environ.get("RAY_ADDRESS")):
        say(f"RAY_ADDRESS={address} is ignored, {what} runs on this machine; --ray-address auto uses it")


def database(given: str | None) -> str:
    """Return the database's address: that of the flag, of $PRUNEFRONT_DB, or the default."""
    return given or os.environ.get("PRUNEFRONT_DB") or DEFAULT_DB


def flops_limit(text: str | None, dense_flops: int) -> int | None:
    """Read --max-flops; BudgetError if it is malformed or a range."""
    if text is None:
        return None
    budget = FlopsBudget.parse(text)
    if budget.low is not None:
        raise BudgetError(f"--max-flops {text!r}: expected one bound, such as {text.rpartition(':')[2]}")
    return budget.limit(dense_flops)


def check_top1(value: float | None) -> None:
    """Raise a UsageError unless --min-top1 is a share."""
    if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
        raise UsageError(f"--min-top1 {value:g}: expected a share from 0 to 1, such as 0.95")
