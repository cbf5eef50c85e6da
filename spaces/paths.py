"""What a path leads to. Unlike `pathlib`, nothing here raises: a name that no file can have is the name of none."""

import os
from pathlib import Path


def exists(path: str | Path) -> bool:
    """Return whether there is something at a path.

    >>> exists("."), exists("a" * 5000), exists("a" + chr(0))
    (True, False, False)
    """
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | Path) -> bool:
    """Return whether a path leads to a file."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Return whether a path leads to a folder."""
    return os.path.isdir(path)  # noqa: PTH112
