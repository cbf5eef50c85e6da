"""The command line: `prunefront COMMAND`, which is `python -m search COMMAND`.

Nothing heavy is imported here, so that --help answers at once.
"""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from search.commands.doctor import doctor
from search.commands.export import export
from search.commands.finetuning import finetune
from search.commands.inspecting import front, report, studies
from search.commands.measuring import evaluate, flops, models
from search.commands.mirroring import mirror
from search.commands.output import say
from search.commands.searching import search
from search.commands.training import train
from spaces.errors import PrunefrontError

# What the command line's parser raises on wrong usage. Typer brings the parser along under a name of its
# own since 0.26 or so, and shows of its errors only this one.
_UsageError: type[BaseException] = typer.BadParameter.__mro__[2]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what may keep stdout from being written

app = typer.Typer(
    name="prunefront",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"prunefront {version('prunefront')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def prunefront(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Search token-pruning schedules for vision state-space models and keep the Pareto front."""
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)


for command in (search, front, export, evaluate, flops, train, finetune, report, mirror, studies, models, doctor):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process: 0 done, 1 failed, 2 wrong usage, 130 and 143 on signals."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


class _Terminated(SystemExit):
    """What SIGTERM raises."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated(128 + number)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    An error that a user can act on is one line on stderr; with PRUNEFRONT_DEBUG=1 its traceback as well.
    Anything else is a bug, and is raised.
    """
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    # torch warns of its own parts when timm and fvcore load them; a user cannot act on it.
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is (deprecated|not supported)", category=Warning)
    try:
        result = typer.main.get_command(app).main(args=list(arguments), prog_name="prunefront", standalone_mode=False)
        sys.stdout.flush()
    except PrunefrontError as error:
        return _fail(error, str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has had enough
        _let_go_of_stdout()
        return 1
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _let_go_of_stdout()  # whoever writes to a file names it
        return _fail(error, f"the output cannot be written: {error.strerror}", 1)
    except (KeyboardInterrupt, typer.Abort):
        say("stopped")
        return 128 + signal.SIGINT
    except _UsageError as error:
        return _fail(error, error.format_message() if hasattr(error, "format_message") else str(error), 2)
    except _Terminated:
        say("stopped")
        return 128 + signal.SIGTERM
    return result if isinstance(result, int) else 0


def _let_go_of_stdout() -> None:
    """Throw away what could not be written, which Python would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("PRUNEFRONT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    say(f"error: {' '.join(message.split())}")
    return code
