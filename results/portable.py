"""Paths without the folders of this machine, for files that are passed on to others."""

import re

# The folders of an absolute path: the whole text, the value of `--option=`, or the part after `folder:`.
_FOLDERS = re.compile(r"(?:^/+|(?<=[=:])/(?!/))(?:[^/]+/+)*(?=[^/]+/*$)")


def portable(text: str) -> str:
    """Return a path, or a data set's name that contains one, without the folders of an absolute path.

    A relative path is returned unchanged.

    >>> portable("/home/ada/models/vim.pth")
    'vim.pth'
    >>> portable("folder:/scratch/ada/imagenet"), portable("folder:data/imagenet")
    ('folder:imagenet', 'folder:data/imagenet')
    """
    return _FOLDERS.sub("", text)
