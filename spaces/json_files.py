"""Files that hold one JSON object, read without trusting them."""

import json
from pathlib import Path
from typing import Any

from spaces.errors import PrunefrontError

MOST_BYTES = 10_000_000


def read_object(path: str | Path, error: type[PrunefrontError]) -> dict[str, Any]:
    """Return the JSON object in a file; its fields are not checked.

    Args:
        path: the file, in UTF-8; it may begin with a byte order mark.
        error: what to raise.

    Raises:
        PrunefrontError: an `error`: the file cannot be read, is larger than `MOST_BYTES`, is not JSON, gives a key
            twice, or holds no object.

    >>> from spaces.errors import ExportError
    >>> _ = Path("twice.json").write_text('{"a": 1, "a": 2}')
    >>> read_object("twice.json", ExportError)
    Traceback (most recent call last):
    spaces.errors.ExportError: twice.json: not valid JSON: 'a' appears twice in one object
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
    if len(content) > MOST_BYTES:
        raise error(f"{path}: larger than {MOST_BYTES} bytes")
    try:
        data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not valid JSON: {problem}") from None
    if not isinstance(data, dict):
        raise error(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a decoded JSON object; ValueError if it holds a key twice, of which `json` would drop one."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:40]!r} appears twice in one object")
        found[name] = value
    return found
