"""Atomic writes: a file is written completely or not at all."""

import json
import os
from pathlib import Path
from uuid import uuid4

from spaces.errors import PrunefrontError, UsageError

SQLITE_MAGIC = b"SQLite format 3\0"  # the first bytes of its files


def write_json(path: str | Path, data: object) -> None:
    """Write `data` as indented JSON, atomically.

    Raises:
        PrunefrontError: the file cannot be written; an existing file is unchanged.
        UsageError: the path is a database.
    """
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file atomically: write a temporary file beside it, then rename it.

    Raises:
        PrunefrontError: the file cannot be written; an existing file is unchanged.
        UsageError: the path is a database.
    """
    target = Path(path)
    try:
        if target.is_file():
            with target.open("rb") as file:
                if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
                    raise UsageError(f"{path}: is a database; name another file")
        if target.is_dir():
            raise IsADirectoryError(0, "is a folder; name a file")
        if target.exists() and not target.is_file():  # a pipe or device cannot be replaced
            target.write_bytes(content)
            return
        target = target.resolve()  # replace the target of a link, not the link
        temporary = target.with_name(f".{target.name[:40]}.{uuid4().hex[:8]}.part")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # renamed already if all went well
    except OSError as error:
        raise PrunefrontError(f"{path}: cannot be written: {error.strerror or error}") from None
