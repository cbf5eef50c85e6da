"""Images of a split in words. Scores stand beside each other only with the images that they are of."""


def images_text(split: str, images: int, skip: int = 0) -> str:
    """Return in a few words which images of a split, in its fixed order, a score is of.

    >>> images_text("val", 1000)
    'val, first 1,000'
    >>> images_text("val", 800, skip=200)
    'val, 201–1,000'

    Args:
        split: name of the split.
        images: how many.
        skip: how many before them are left out.
    """
    return f"{split}, {skip + 1:,}–{skip + images:,}" if skip else f"{split}, first {images:,}"
