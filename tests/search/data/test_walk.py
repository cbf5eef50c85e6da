"""Which files a folder of classes is read from, and what is said of the rest."""

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from search.data.dataset import ImageData, open_data
from search.data.notes import DataNote
from spaces.errors import DataError
from tests.search.pictures import noise, write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


@pytest.fixture
def cats(root: Path) -> Path:
    return root / "val" / "cat"


def opened(root: Path) -> tuple[ImageData, list[str]]:
    """Return the data set with its split val open, and the notes on it."""
    data = open_data(f"folder:{root}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.size("val")
    return data, [str(one.message) for one in caught if issubclass(one.category, DataNote)]


def test_a_clean_folder_has_no_notes(root: Path) -> None:
    data, notes = opened(root)
    assert (data.size(), notes) == (12, [])


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "more/.hidden/deeper", "@eaDir", "more/__MACOSX", ".hidden/.twice"]
)
def test_hidden_folders_are_passed_over_at_every_depth(root: Path, cats: Path, name: str) -> None:
    before = open_data(f"folder:{root}").digest()
    (cats / name).mkdir(parents=True)
    noise(1).save(cats / name / "a.png")
    data, notes = opened(root)
    assert (data.size(), data.digest(), notes) == (12, before, [])


def test_hidden_folders_are_no_classes(root: Path) -> None:
    for name in (".git", "__MACOSX"):
        (root / "val" / name).mkdir()
    assert opened(root)[0].classes == ["cat", "dog"]


def test_visible_folders_are_read_whatever_they_are_called(root: Path, cats: Path) -> None:
    (cats / "x.png" / "deep").mkdir(parents=True)
    noise(1).save(cats / "x.png" / "deep" / "a.png")
    data, notes = opened(root)
    assert (data.size(), notes) == (13, [])


def test_images_of_other_suffixes_are_counted(root: Path, cats: Path) -> None:
    for number, suffix in enumerate((".jfif", ".jfif", ".gif", "")):
        noise(number).save(cats / f"x{number}{suffix}", "GIF" if suffix == ".gif" else "JPEG")
    (cats / "labels.txt").write_text("no image")
    data, notes = opened(root)
    assert data.size() == 12
    assert notes == [
        f"{root / 'val'}: 5 left out: 2 .jfif, 1 without a suffix, 1 .gif, 1 .txt "
        "(4 of them images by their content: rename them to .jpg or .png)"
    ]


def test_suffixes_may_be_capitals(root: Path, cats: Path) -> None:
    (cats / "0.png").rename(cats / "0.PNG")
    data, notes = opened(root)
    assert (data.size(), notes) == (12, [])


def test_what_systems_leave_is_not_counted(root: Path, cats: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (cats / name).write_text("")
    assert opened(root)[1] == []


def test_files_beside_the_classes_are_counted(root: Path) -> None:
    noise(1).save(root / "val" / "stray.png")
    data, notes = opened(root)
    assert data.size() == 12
    assert notes == [f"{root / 'val'}: 1 left out: 1 in the wrong place, such as 'stray.png'"]


def test_an_image_by_its_suffix_alone_is_named_when_it_is_read(root: Path, cats: Path) -> None:
    (cats / "text.jpg").write_text("no image")
    data, notes = opened(root)
    assert (data.size(), notes) == (13, [])


def test_a_pipe_is_left_out(root: Path, cats: Path) -> None:
    os.mkfifo(cats / "pipe.png")
    data, notes = opened(root)
    assert data.size() == 12
    assert notes == [f"{root / 'val'}: 1 left out: 1 that are no regular files, such as 'pipe.png'"]


def test_a_split_is_noted_once_and_not_in_workers(root: Path, cats: Path) -> None:
    (cats / "notes.txt").write_text("")
    with pytest.warns(DataNote) as caught:
        data = open_data(f"folder:{root}")
        data.size(), data.digest(), data.size()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_data(f"folder:{root}", quiet=True).size()


class TestLinks:
    @pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
    def test_a_link_that_leads_back_is_left_out(self, root: Path, cats: Path, target: str) -> None:
        before = open_data(f"folder:{root}").digest()
        (cats / "more").mkdir()
        (cats / "more" / "back").symlink_to(target)
        data, notes = opened(root)
        assert (data.size(), data.digest()) == (12, before)
        assert notes == [f"{root / 'val'}: 1 left out: 1 link back, or to what is read already"]

    def test_links_in_a_circle_end(self, root: Path, cats: Path, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        for folder, other in ((one, two), (two, one)):
            folder.mkdir()
            (folder / "other").symlink_to(other)
        noise(1).save(two / "a.png")
        (cats / "one").symlink_to(one)
        (cats / "self").symlink_to("self")
        data, notes = opened(root)
        assert data.size() == 13
        assert len(notes) == 1

    def test_a_folder_that_two_ways_lead_to_is_read_once(self, root: Path, cats: Path) -> None:
        before = open_data(f"folder:{root}").digest()
        (cats / "a_link").symlink_to("real")
        (cats / "real").mkdir()
        (cats / "0.png").rename(cats / "real" / "0.png")
        data, notes = opened(root)
        assert data.size() == 12
        assert notes == [f"{root / 'val'}: 1 left out: 1 link back, or to what is read already"]
        (cats / "a_link").unlink()
        assert open_data(f"folder:{root}").digest() == data.digest() != before

    def test_a_link_to_an_image_of_the_class_is_left_out(self, root: Path, cats: Path) -> None:
        (cats / "copy.png").symlink_to("0.png")
        data, notes = opened(root)
        assert data.size() == 12
        assert notes == [f"{root / 'val'}: 1 left out: 1 link back, or to what is read already"]

    def test_equal_files_are_two_images(self, root: Path, cats: Path) -> None:
        (cats / "hard.png").hardlink_to(cats / "0.png")
        data, notes = opened(root)
        assert (data.size(), notes) == (13, [])

    def test_a_class_may_lie_elsewhere(self, root: Path, cats: Path) -> None:
        before = open_data(f"folder:{root}").digest()
        cats.rename(root / "cats")
        cats.symlink_to(root / "cats")
        data, notes = opened(root)
        assert (data.digest(), notes) == (before, [])

    def test_images_may_be_links_to_a_pool(self, root: Path, cats: Path) -> None:
        before = open_data(f"folder:{root}").digest()
        (root / "pool").mkdir()
        for path in list(cats.iterdir()):
            path.rename(root / "pool" / path.name)
            path.symlink_to(root / "pool" / path.name)
        data, notes = opened(root)
        assert (data.digest(), notes) == (before, [])

    def test_an_image_in_two_classes_is_read_and_said(self, root: Path, cats: Path) -> None:
        (root / "val" / "dog" / "cat.png").symlink_to(cats / "0.png")
        data, notes = opened(root)
        assert data.size() == 13
        assert notes == [f"{root / 'val'}: 1 image in two classes, by a link, such as dog/cat.png"]

    def test_a_class_that_leads_back_is_refused(self, root: Path) -> None:
        for split in ("train", "val"):
            (root / split / "all").symlink_to(".")
        with pytest.raises(DataError, match=r"val/all: a link that leads back to .*; remove it"):
            open_data(f"folder:{root}").size()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(root: Path, cats: Path) -> None:
    (cats / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match=r"cat/closed: cannot be read: Permission denied"):
        open_data(f"folder:{root}").size()


def test_a_class_of_other_suffixes_alone_is_refused(root: Path, cats: Path) -> None:
    for path in list(cats.iterdir()):
        Image.open(path).save(path.with_suffix(".gif"))
        path.unlink()
    with pytest.raises(DataError, match=r"val/cat: no images \(\.bmp"):
        open_data(f"folder:{root}").size()
