"""Printing: data goes to stdout as a table, JSON or CSV, everything else to stderr as single lines."""

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from search.commands.streams import escape, takes_unicode

WIDEST = 10_000  # characters in a line of a table


class Format(StrEnum):
    """How to print results."""

    table = "table"
    json = "json"
    csv = "csv"


@dataclass(frozen=True)
class Column:
    """A field of the printed objects: its heading in a table, and how to show a value there."""

    heading: str
    show: Callable[[Any], str] = str
    right: bool = False


Columns = Mapping[str, Column]


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Columns, form: Format, empty: str = "") -> None:
    """Print objects: as a JSON list, as CSV with a header, or as a table of the given columns.

    Args:
        rows: the objects; JSON and CSV hold all of their fields.
        columns: the columns of the table, by field; also the header of a CSV without rows.
        form: table, JSON or CSV.
        empty: printed to stderr in place of a table without rows.
    """
    if form is not Format.table:
        ascii_only = not takes_unicode(sys.stdout)
        print(escape(rows_text(rows, columns, form, ascii_only=ascii_only), sys.stdout), end="")
    elif rows:
        _print_table(rows, columns)
    elif empty:
        say(empty)


def print_object(values: Mapping[str, Any], columns: Columns, form: Format) -> None:
    """Print one object: as JSON, as CSV of one row, or as lines of heading and value."""
    if form is Format.json:
        print(_json_text(values, ascii_only=not takes_unicode(sys.stdout)), end="")
    elif form is Format.csv:
        print(escape(_csv_text([values], list(values)), sys.stdout), end="")
    else:
        shown = {column.heading: _shown(values[key], column) for key, column in columns.items()}
        width = max(map(len, shown))
        for heading, value in shown.items():
            print(f"{heading:{width}}  {value}")


def rows_text(rows: Sequence[Mapping[str, Any]], columns: Columns, form: Format, *, ascii_only: bool = False) -> str:
    """Return what `print_rows` prints as JSON, with `ascii_only` in ASCII, or as CSV."""
    if form is Format.json:
        return _json_text(list(rows), ascii_only=ascii_only)
    return _csv_text(rows, list(rows[0]) if rows else list(columns))


def _json_text(data: Any, *, ascii_only: bool) -> str:
    return json.dumps(data, indent=2, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def _csv_text(rows: Sequence[Mapping[str, Any]], names: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([" ".join(map(str, v)) if isinstance(v, list | tuple) else v for v in row.values()])
    return text.getvalue()


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> None:
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    lines = box.SIMPLE_HEAD
    if not takes_unicode(sys.stdout):
        lines = box.Box(str(lines).replace("─", "-"), ascii=True)
    table = Table(box=lines, pad_edge=False, show_edge=False)
    for column in columns.values():
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_shown(row[key], column)) for key, column in columns.items()))
    console = Console(file=sys.stdout, highlight=False)
    # Lines are never folded: a pipe has no width, and on a narrow terminal long lines read better than folded cells.
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    console = Console(file=sys.stdout, highlight=False, width=width)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _shown(value: Any, column: Column) -> str:
    return "-" if value is None else column.show(value)


def compact_flops(flops: int) -> str:
    """Return FLOPs as the options take them.

    >>> compact_flops(3_600_000_000), compact_flops(950)
    ('3.60G', '950')
    """
    for unit, scale in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if flops >= scale:
            return f"{flops / scale:.2f}{unit}"
    return str(flops)


def share_text(share: float) -> str:
    """Return a share with four digits."""
    return f"{share:.4f}"
