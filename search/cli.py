"""The command line: `prunefront COMMAND`, or `python -m search COMMAND`.

Commands import torch, Ray and SQLAlchemy in their bodies, so that `--help` answers at once.
"""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
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
from search.commands.streams import prepare_streams
from search.commands.training import train
from search.data.notes import DataNote
from search.runtime.scratch import NO_PLACE
from search.runtime.user import complete_user
from spaces.errors import PrunefrontError

# The parser's base class for wrong usage. Typer vendors the parser under another name since 0.26, and exports only
# this subclass.
_UsageError: type[BaseException] = typer.BadParameter.__mro__[2]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # why stdout may not be writable

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
    """Run a command and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 on signals."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


class _Terminated(SystemExit):
    """Raised on SIGTERM, so that context managers clean up."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated(128 + number)


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    An error that a user can act on is printed as one line on stderr, after its traceback with PRUNEFRONT_DEBUG=1.
    Any other exception is a bug, and is raised.
    """
    prepare_streams()
    complete_user()
    warnings.showwarning = _say_warning
    # timm and fvcore use deprecated parts of torch; users cannot act on the warnings.
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is (deprecated|not supported)", category=Warning)
    try:
        result = typer.main.get_command(app).main(args=list(arguments), prog_name="prunefront", standalone_mode=False)
        sys.stdout.flush()
    except PrunefrontError as error:
        return _fail(error, str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output closed it
        _discard_stdout()
        return 1
    except OSError as error:
        if "No usable temporary directory" in str(error):  # torch asks for one when it is imported
            return _fail(error, NO_PLACE, 1)
        if error.errno not in _FULL or error.filename is not None:
            raise
        _discard_stdout()  # an error without a file name is about stdout
        return _fail(error, f"the output cannot be written: {error.strerror}", 1)
    except (KeyboardInterrupt, typer.Abort):
        say("stopped")
        return 128 + signal.SIGINT
    except _UsageError as error:
        return _fail(error, error.format_message() if hasattr(error, "format_message") else str(error), 2)
    except UnicodeEncodeError as error:
        undecoded = next(
            (a for a in arguments if not a.isascii() and any("\udc80" <= c <= "\udcff" for c in a)), None
        )
        if undecoded is None:
            raise
        return _fail(error, f"{undecoded}: bytes that are no text in this locale's encoding; try LC_ALL=C.UTF-8", 2)
    except _Terminated:
        say("stopped")
        return 128 + signal.SIGTERM
    return result if isinstance(result, int) else 0


def _say_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    kind = "note" if issubclass(category, DataNote) else "warning"
    say(f"{kind}: {' '.join(str(message).split())}")


def _discard_stdout() -> None:
    """Discard what could not be written, or Python would try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("PRUNEFRONT_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    say(f"error: {' '.join(message.split())}")
    return code
