"""The images of a study, opened and read as the study itself does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from results.records import StudySpec
from search.data.class_order import NATURAL, TEXT
from search.data.dataset import ImageData, open_data
from search.data.image_set import REST, VAL, ImageSet, StudyImages
from spaces.errors import DataError

# In the config of a study: how its images are read. Studies of version 0.2 lack both; they took classes in the order
# of the data set, which is text order for folders, and left images unturned that are not in TIFF.
CLASS_ORDER, ORIENTATION = "class_order", "orientation"
EXIF = "exif"  # the orientation by which images are turned


def reading(data: ImageData) -> dict[str, Any]:
    """Return what a study records of how its images are read; a file of class names by its absolute path."""
    order = data.class_order
    if order not in (None, TEXT, NATURAL):
        order = str(Path(order).expanduser().absolute())
    return {CLASS_ORDER: order, ORIENTATION: EXIF}


def open_study_data(study: StudySpec, spec: str | None = None, class_order: str | None = None) -> ImageData:
    """Open the images of a study in its order of classes.

    Args:
        study: the study.
        spec, class_order: what takes precedence over the study's, if given.

    Raises:
        UsageError, DataError: as for `open_data`.
    """
    order = class_order or study.config.get(CLASS_ORDER)
    return open_data(spec or study.data, class_order=order, fallback=TEXT)


def study_images(study: StudySpec) -> StudyImages:
    """Return which images chose the schedules of a study, and on which it confirms its front."""
    return StudyImages(
        where=f"study {study.name!r}",
        searched=ImageSet(VAL, study.images, 0, study.order),
        confirming=confirming_images(study.confirm_split, study.confirm_images, study.images, study.order),
        digest=study.data_digest,
    )


def confirming_images(split: str, images: int, searched: int, order: str) -> ImageSet | None:
    """Return the images that a front is confirmed on, from what a study records; None if there are none."""
    if not images:
        return None
    return ImageSet(VAL, images, searched, order) if split == REST else ImageSet(split, images, 0, order)


def check_reading(study: StudySpec, data: ImageData, splits: Iterable[str]) -> None:
    """Raise a DataError if images of these splits were turned otherwise when the study measured them."""
    if ORIENTATION in study.config:
        return
    for split in splits:
        if (turned := data.first_turned(split)) is not None:
            raise DataError(
                f"{turned} has an EXIF orientation, by which it is turned now; study {study.name!r} measured it "
                "unturned, and scores of the two must not mix: begin another study"
            )
