"""The images that scores are measured on, and the words by which commands name them."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from results.image_sets import images_text
from search.data.image_order import DEFAULT_ORDER
from spaces.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from search.data.dataset import Batches, ImageData
    from ssm_models import PrunableModel

VAL, TEST, REST = "val", "test", "rest"  # rest: images of val beyond those that a search used
CHOICES = (VAL, TEST, REST)


@dataclass(frozen=True)
class ImageSet:
    """Images of a data set: `images` of `split`, after the first `skip`, in the order that `order` names.

    >>> searched = ImageSet("val", 200)
    >>> searched.text, searched.end, searched.overlap(ImageSet("val", 300, skip=150))
    ('val, first 200', 200, 50)
    """

    split: str
    images: int
    skip: int = 0
    order: str = DEFAULT_ORDER

    @property
    def end(self) -> int:
        """The number of images of the split up to the last one of the set."""
        return self.skip + self.images

    @property
    def text(self) -> str:
        """The set in a few words, such as `val, 201–1,000`."""
        return images_text(self.split, self.images, self.skip)

    def overlap(self, other: "ImageSet") -> int:
        """Return how many images two sets of one data set and in one order share."""
        if self.split != other.split:
            return 0
        return max(0, min(self.end, other.end) - max(self.skip, other.skip))

    def after(self, other: "ImageSet") -> "ImageSet | None":
        """Return what is left of this set beyond the end of another one; None if nothing is."""
        if self.split != other.split:
            return self
        skip = max(self.skip, other.end)
        return ImageSet(self.split, self.end - skip, skip, self.order) if skip < self.end else None

    def first(self, images: int | None) -> "ImageSet":
        """Return the first of these images; None for all."""
        return self if images is None else replace(self, images=min(images, self.images))

    def halves(self) -> "tuple[ImageSet, ImageSet]":
        """Return two disjoint sets of nearly equal size, the second of which is the rest of the first."""
        first = self.images // 2
        return (
            ImageSet(self.split, first, self.skip, self.order),
            ImageSet(self.split, self.images - first, self.skip + first, self.order),
        )

    def batches(self, data: "ImageData", model: "PrunableModel", batch_size: int = 100) -> "Batches":
        """Return the images as a model takes them; errors as for `ImageData.batches`."""
        config, size = model.pretrained_cfg, model.img_size
        return data.batches(config, size, self.split, self.images, batch_size, self.skip, self.order)


@dataclass(frozen=True)
class StudyImages:
    """The images of a study, for commands that score its schedules.

    Attributes:
        where: what messages call what names the images: a study, or a schedule file.
        searched: the images that chose the schedules.
        confirming: the images that the study confirms its front on; None if there are none.
        digest: SHA-256 of the split val.
    """

    where: str
    searched: ImageSet
    confirming: ImageSet | None
    digest: str

    @property
    def order(self) -> str:
        """The order that the images are in."""
        return self.searched.order

    def score_images(self, data: "ImageData") -> ImageSet:
        """Return the images that scores are compared on: the confirming ones.

        If there are none beside the searched ones, they are those that the search left over, or else all of val.
        """
        confirming, whole = self.confirming, ImageSet(VAL, data.size(), 0, self.order)
        if confirming is not None and confirming.overlap(self.searched) < confirming.images:
            return confirming
        return whole.after(self.searched) or whole

    def overlap_note(self, images: ImageSet) -> str | None:
        """Return a line that says so if images that chose the schedules are among those of a score."""
        shared = images.overlap(self.searched)
        if not shared:
            return None
        which = "are" if shared == images.images else f"include {shared:,} of"
        return (
            f"the images of the scores ({images.text}) {which} those that chose the schedule in {self.where}, "
            "so they tend to be too high; --split rest or --split test takes others"
        )


@dataclass(frozen=True)
class ImageChoice:
    """The images that a user asks for: `--split`, `--skip` and `--images`.

    Attributes:
        split: val, test or rest; None if not given, and val then.
        skip: images to leave out at the beginning of the split; None if not given.
        images: how many at most; None for all.
        option: name of the option for `split`, for messages.

    >>> from search.data.dataset import open_data
    >>> digits = open_data("embedded")
    >>> ImageChoice("rest", images=500).image_set(digits, searched=ImageSet("val", 200)).text
    'val, 201–700'
    """

    split: str | None = None
    skip: int | None = None
    images: int | None = None
    option: str = "--split"

    def __post_init__(self) -> None:
        if self.split not in (None, *CHOICES):
            raise UnknownNameError("split", str(self.split), CHOICES)
        if self.skip is not None and self.skip < 0:
            raise UsageError(f"--skip {self.skip}: expected at least 0")
        if self.images is not None and self.images < 0:
            raise UsageError(f"--images {self.images}: expected at least 0")

    @property
    def given(self) -> bool:
        """Whether the user asked for anything."""
        return (self.split, self.skip, self.images) != (None, None, None)

    def image_set_of(self, data: "ImageData", study: StudyImages | None, order: str | None = None) -> ImageSet:
        """Return the images that are asked for, where a study or a schedule file may say what `rest` is.

        Args:
            data: the data set.
            study: the images of the study, if any.
            order: the order that they are in; by default the study's.

        Raises:
            UsageError, DataError: as for `image_set`, or the study searched another data set.
        """
        searched = None
        if self.split == REST and study is not None:
            if data.digest() == study.digest:
                searched = study.searched
            elif self.skip is None:
                raise UsageError(
                    f"{self.option} rest: {study.where} searched other images than {data.spec}; say how many to "
                    "leave out with --skip N"
                )
        usual = DEFAULT_ORDER if study is None else study.order
        return self.image_set(data, order=order or usual, searched=searched)

    def image_set(
        self, data: "ImageData", *, order: str = DEFAULT_ORDER, searched: ImageSet | None = None
    ) -> ImageSet:
        """Return the images that are asked for.

        Args:
            data: the data set.
            order: the order that they are in.
            searched: the images that a search used, after which `rest` begins.

        Raises:
            UsageError: `rest` is asked for and nothing says where it begins, or two things do; or no image is left.
            DataError: the split is missing.
        """
        skip = self.skip or 0
        if self.split == REST:
            if searched is None and self.skip is None:
                raise UsageError(
                    f"{self.option} rest is val without the images that a search used: name them by its study or by "
                    "a schedule that `export` wrote, or say how many they are with --skip N"
                )
            if searched is not None:
                if self.skip is not None:
                    raise UsageError(
                        f"{self.option} rest begins after the {searched.images} images that were searched: leave "
                        f"--skip out, or give {self.option} val --skip {self.skip}"
                    )
                skip = searched.end
        split = VAL if self.split in (None, REST) else str(self.split)
        there = data.size(split) - skip
        if there < 1 and self.split == REST and searched is not None:
            raise UsageError(
                f"{self.option} rest: none is left, for all {searched.images} images of val were searched"
            )
        if there < 1:
            raise UsageError(f"--skip {skip}: {split} of {data.spec} has {data.size(split)} images; leave out fewer")
        return ImageSet(split, there if self.images is None else min(self.images, there), skip, order)
