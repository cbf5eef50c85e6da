"""Text on streams that cannot hold all of it: an encoding other than UTF-8, or undecodable bytes of a file name."""

import codecs
import io
import os
import sys
from pathlib import Path
from typing import TextIO

ERRORS = "prunefront"  # the name under which Python knows `_replace`
# What this project's own text contains beyond ASCII.
_ASCII = str.maketrans(
    {
        "–": "-",
        "—": "-",
        "−": "-",
        "─": "-",
        "·": "*",
        "…": "...",
        "×": "x",
        "±": "+-",
        "→": "->",
        "≤": "<=",
        "≥": ">=",
        "²": "^2",
        "½": "1/2",
        "“": '"',
        "”": '"',
    }
)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Encode what a stream cannot hold: our own signs as ASCII, everything else as a backslash escape.

    >>> "0.61–0.63 of 日本".encode("latin-1", "prunefront")
    b'0.61-0.63 of \\u65e5\\u672c'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return text.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ERRORS, _replace)


def prepare_streams() -> None:
    """Let stdout and stderr take any text; a stream that the parent process closed discards it.

    An error handler that the user has chosen, such as `replace` in PYTHONIOENCODING, stays.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in (
            "strict",
            "surrogateescape",
            "backslashreplace",
        ):
            stream.reconfigure(errors=ERRORS)


def takes_unicode(stream: TextIO) -> bool:
    """Return whether the stream's encoding has all characters, as a stream without one does."""
    return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name.startswith("utf")


def escape(text: str, stream: TextIO) -> str:
    r"""Return data with a backslash escape for each character that the stream cannot hold.

    Unlike the error handler this never makes two texts equal.

    >>> import io
    >>> print(escape("a–b", io.TextIOWrapper(io.BytesIO(), encoding="ascii")))
    a\u2013b
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
