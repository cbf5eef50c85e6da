"""Which images of a data set an evaluation runs over."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSet:
    """Images of a data set, in its fixed order: `images` of `split`, after `skip` that are left out."""

    split: str
    images: int
    skip: int = 0
