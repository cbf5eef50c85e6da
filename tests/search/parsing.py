"""A command that takes settings and only keeps what it was given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from search.commands.flags import takes_settings
from search.settings import Given, given_flags, given_keys


def _app(seen: dict[str, Given], classes: tuple[type, ...]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    @takes_settings(*classes)
    def command(flags: Mapping[str, Any], config: Annotated[Path | None, typer.Option()] = None) -> None:
        """Keep what was given."""
        seen.update(given_keys(config, *classes) if config is not None else {})
        seen.update(given_flags(flags, *classes))

    return app


def parse(arguments: Sequence[str], *classes: type) -> dict[str, Given]:
    """Return what a command line gives; raises what the command raises."""
    seen: dict[str, Given] = {}
    typer.main.get_command(_app(seen, classes)).main(args=list(arguments), standalone_mode=False)
    return seen


def help_of(*classes: type) -> str:
    """Return the help of the command, with single spaces."""
    found = CliRunner().invoke(_app({}, classes), ["--help"], terminal_width=1000)
    assert found.exit_code == 0
    return " ".join(found.output.split())
