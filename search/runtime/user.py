"""A home folder and a name for a user who has neither, such as a container's user id without an entry in passwd."""

import getpass
import os
from pathlib import Path


def complete_user() -> None:
    """Set HOME to / and USER to the user's number where the system knows none, as Docker sets HOME.

    Ray asks for the home folder when it is imported, and torch for the name when it compiles.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
