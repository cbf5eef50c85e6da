"""Paths as files that are handed on give them: without the folders of the machine that wrote them."""

import re

# The folders of an absolute path that is the whole text, the value of `--option=`, or what follows a kind's colon.
_FOLDERS = re.compile(r"(?:^/+|(?<=[=:])/(?!/))(?:[^/]+/+)*(?=[^/]+/*$)")


def portable(text: str) -> str:
    """Return a path, or the name of a data set with a path in it, without the folders of an absolute path.

    A relative path stays as it was written.

    >>> portable("/home/ada/models/vim.pth")
    'vim.pth'
    >>> portable("folder:/scratch/ada/imagenet"), portable("folder:data/imagenet")
    ('folder:imagenet', 'folder:data/imagenet')
    """
    return _FOLDERS.sub("", text)
