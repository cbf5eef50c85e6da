"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from uuid import uuid4

from spaces.errors import PrunefrontError, UsageError

SQLITE_MAGIC = b"SQLite format 3\0"  # how its files begin


def write_json(path: str | Path, data: object) -> None:
    """Write `data` as indented JSON, whole or not at all.

    Raises:
        PrunefrontError: it cannot be written; whatever stood there stands as before.
    """
    write_whole(path, (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, so that no reader ever sees half of it.

    Raises:
        PrunefrontError: it cannot be written; whatever stood there stands as before.
        UsageError: a database stands there.
    """
    target = Path(path)
    try:
        if target.is_file():
            with target.open("rb") as file:
                if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
                    raise UsageError(f"{path}: is a database; name another file")
        if target.is_dir():
            raise IsADirectoryError(0, "is a folder; name a file")
        if target.exists() and not target.is_file():  # a pipe or device: there is nothing to replace
            target.write_bytes(content)
            return
        target = target.resolve()  # replace what a link points to, not the link
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
            temporary.unlink(missing_ok=True)  # it is gone if all went well
    except OSError as error:
        raise PrunefrontError(f"{path}: cannot be written: {error.strerror or error}") from None
