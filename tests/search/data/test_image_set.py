"""The images that scores are of: what --split, --skip and --images name, and what is ambiguous."""

from dataclasses import replace

import pytest

from search.data.dataset import ImageData, open_data
from search.data.image_set import ImageChoice, ImageSet, StudyImages
from spaces.errors import DataError, UnknownNameError, UsageError

SEARCHED = ImageSet("val", 200, order="stratified")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("embedded")


@pytest.fixture(scope="module")
def study(digits: ImageData) -> StudyImages:
    return StudyImages("study 's'", SEARCHED, replace(SEARCHED, images=1000), digits.digest())


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ImageChoice(), (1000, 0)),
        (ImageChoice(images=30), (30, 0)),
        (ImageChoice("val", 100, 5000), (900, 100)),
        (ImageChoice("rest"), (800, 200)),
        (ImageChoice("rest", images=30), (30, 200)),
    ],
)
def test_what_is_asked_for(
    digits: ImageData, study: StudyImages, choice: ImageChoice, expected: tuple[int, int]
) -> None:
    images, skip = expected
    assert choice.image_set_of(digits, study) == ImageSet("val", images, skip, "stratified")


def test_rest_without_a_study_takes_skip(digits: ImageData) -> None:
    assert ImageChoice("rest", 300).image_set_of(digits, None) == ImageSet("val", 700, 300)
    with pytest.raises(UsageError, match="say how many they are with --skip N"):
        ImageChoice("rest").image_set_of(digits, None)


def test_what_is_ambiguous_or_not_there_is_refused(digits: ImageData, study: StudyImages) -> None:
    with pytest.raises(UsageError, match="leave --skip out, or give --split val --skip 300"):
        ImageChoice("rest", 300).image_set_of(digits, study)
    with pytest.raises(UsageError, match="study 's' searched other images than embedded"):
        ImageChoice("rest").image_set_of(digits, replace(study, digest="0" * 64))
    with pytest.raises(UsageError, match="all 1000 images of val were searched"):
        ImageChoice("rest").image_set_of(digits, replace(study, searched=ImageSet("val", 1000)))
    with pytest.raises(UsageError, match="val of embedded has 1000 images; leave out fewer"):
        ImageChoice("val", 1000).image_set_of(digits, study)
    with pytest.raises(UsageError, match="--skip -1"):
        ImageChoice("val", -1)
    with pytest.raises(UnknownNameError, match="unknown split 'tets': did you mean 'test'"):
        ImageChoice("tets")
    with pytest.raises(DataError, match="it has no test split"):
        ImageChoice("test").image_set_of(digits, study)


def test_a_study_is_scored_on_its_confirming_images(digits: ImageData, study: StudyImages) -> None:
    rest = replace(SEARCHED, images=800, skip=200)
    whole = replace(SEARCHED, images=1000)
    assert study.score_images(digits) == whole
    assert "include 200 of those that chose the schedule in study 's'" in str(study.overlap_note(whole))
    assert study.overlap_note(rest) is None
    for confirming in (None, rest, replace(SEARCHED, images=100)):  # the last are all searched ones
        assert replace(study, confirming=confirming).score_images(digits) == rest
    assert replace(study, searched=whole, confirming=None).score_images(digits) == whole


def test_halves_are_disjoint_and_all_of_it() -> None:
    one, other = ImageSet("val", 7, 2).halves()
    assert (one.images, other.images, one.overlap(other), one.end) == (3, 4, 0, other.skip)
