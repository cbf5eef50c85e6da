"""The images that an evaluation runs over."""

from dataclasses import dataclass

from search.data.image_order import DEFAULT_ORDER


@dataclass(frozen=True)
class ImageSet:
    """Images of a data set: `images` of `split`, after the first `skip`, in the order that `image_order` names."""

    split: str
    images: int
    skip: int = 0
    order: str = DEFAULT_ORDER
