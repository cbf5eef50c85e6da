"""The images that an evaluation runs over."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSet:
    """Images of a data set, in its fixed order: `images` of `split`, after the first `skip`."""

    split: str
    images: int
    skip: int = 0
