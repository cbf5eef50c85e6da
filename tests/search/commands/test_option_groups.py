"""Commands whose options are grouped in dataclasses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from search.commands.option_groups import grouped_options


@dataclass(frozen=True)
class Size:
    height: Annotated[int, typer.Option(metavar="H", help="The height.")]
    width: Annotated[int, typer.Option("--wide", help="The width.")] = 3


@dataclass(frozen=True)
class Place:
    folder: Annotated[Path | None, typer.Option(help="A folder.")] = None


def draw(size: Size, place: Place, name: Annotated[str, typer.Argument()] = "it", loud: bool = False) -> None:
    print(size, place, name, loud)


app = typer.Typer()
app.command()(grouped_options(draw))


def test_options_arrive_in_their_groups() -> None:
    result = CliRunner().invoke(app, ["--height", "2", "--wide", "5", "box", "--folder", "a", "--loud"])
    assert result.stdout == f"{Size(2, 5)} {Place(Path('a'))} box True\n"


def test_options_keep_their_defaults() -> None:
    result = CliRunner().invoke(app, ["--height", "2"])
    assert result.stdout == f"{Size(2, 3)} {Place(None)} it False\n"


def test_a_field_without_a_default_is_required() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "--height" in result.output


def test_help_shows_every_option() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(text in shown for text in ("--height", "The height.", "--wide", "--folder", "--loud"))
