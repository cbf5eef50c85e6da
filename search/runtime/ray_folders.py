"""Where Ray keeps its files: short paths for its sockets, shared memory that is large enough, a token of its own."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from search.runtime.scratch import SCRATCH_NAME_BYTES, scratch_folder
from spaces.errors import SearchError

OBJECT_STORE_BYTES = 80 * 2**20  # nothing large goes through it; Ray takes no less than 75 MiB
# A socket's path holds 107 bytes, 103 on macOS. Ray adds /session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store.
LONGEST_RAY_FOLDER = 39
SHARED_MEMORY = Path("/dev/shm")
SHORT_PLACES = (Path("/tmp"), Path("/var/tmp"), SHARED_MEMORY)


def ray_folder(scratch: Path) -> AbstractContextManager[Path]:
    """Return a folder for Ray's session: the search's own, or a temporary one in a place with a shorter path.

    Raises:
        SearchError: no such place can be written.
    """
    if len(os.fsencode(scratch)) <= LONGEST_RAY_FOLDER:
        return nullcontext(scratch)
    for place in SHORT_PLACES:
        if os.access(place, os.W_OK | os.X_OK):
            return scratch_folder(place)
    places = ", ".join(map(str, SHORT_PLACES))
    raise SearchError(
        f"the path of {scratch} is too long for Ray's sockets, and none of {places} can be written; "
        f"set TMPDIR to a folder whose path has at most {LONGEST_RAY_FOLDER - SCRATCH_NAME_BYTES} bytes"
    )


def object_store_folder(fallback: Path) -> Path:
    """Return the folder of Ray's object store: shared memory, or `fallback` where that does not do.

    Little goes through the store, so a folder on a disk costs no time.
    """
    return fallback if shared_memory_missing() else SHARED_MEMORY


def shared_memory_missing() -> str | None:
    """Return why Ray's object store cannot be in shared memory, None if it can; a container often has 64 MiB."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        return str(error.strerror)
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return "cannot be written"
    if free < OBJECT_STORE_BYTES:
        return f"{free // 2**20} MiB free of the {OBJECT_STORE_BYTES // 2**20} that Ray takes"
    return None


@contextmanager
def own_token(folder: Path) -> Iterator[None]:
    """Give a Ray that is started meanwhile a token of its own in `folder`; Ray itself would write one into HOME.

    A token that the user has set stays, and so does `RAY_AUTH_MODE=disabled`. A path to a token that does not exist,
    as in an image for clusters that runs without its secret, is not used.
    """
    mode, given = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    disabled = mode is not None and mode.lower() != "token"
    if disabled or "RAY_AUTH_TOKEN" in os.environ or (given is not None and os.access(given, os.R_OK)):
        yield
        return
    path = folder / "ray_token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    _read_token_again()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN_PATH", given)):  # Ray sets the mode
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_token_again()


def _read_token_again() -> None:
    """Let Ray forget the mode and token of earlier sessions in this process."""
    raylet: Any = import_module("ray._raylet")
    if hasattr(raylet, "AuthenticationTokenLoader"):  # older versions of Ray have no tokens
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
