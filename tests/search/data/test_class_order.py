"""The order of class names: text, natural, or a file's; and what is refused rather than guessed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.utils.misc import natural_key as timm_key

from search.data.class_order import NATURAL, TEXT, is_ambiguous, natural_key, sorted_names
from search.data.dataset import ImageData, open_data
from search.data.source import OBJECTS, ClassificationSource, Split
from spaces.errors import DataError, UsageError
from tests.search.pictures import write_folder

CFG = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


class Named(ClassificationSource):
    """Classes without images."""

    augmentation = OBJECTS

    def __init__(self, classes: list[str], declares_order: bool) -> None:
        self.classes, self.declares_order = classes, declares_order

    def split(self, name: str) -> Split:
        raise NotImplementedError


NUMBERS = tuple(map(str, range(12)))
IN_TEXT = sorted(NUMBERS)


@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=12))
def test_natural_order_is_timms(name: str) -> None:
    assert natural_key(name) == timm_key(name)


@pytest.mark.parametrize(
    ("names", "ambiguous"),
    [
        (IN_TEXT, True),
        (["Cat", "ant"], True),  # timm ignores case
        (["a10", "a9"], True),
        (["n01440764", "n01443537", "n02102040"], False),
        (["0", "1", "2"], False),
        (["01", "02", "10"], False),
        (["Cat", "Dog"], False),
        (list(NUMBERS), False),  # the data set's own order, which no sorting by text has made
        (["x", "\u00b2"], False),  # a superscript is no digit
    ],
)
def test_only_names_that_sort_in_two_ways_are_ambiguous(names: list[str], ambiguous: bool) -> None:
    assert is_ambiguous(names) == ambiguous


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "numbers", NUMBERS, each=2)


class TestFile:
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    def test_it_gives_any_order(self, tmp_path: Path, mark: bytes) -> None:
        path = tmp_path / "classes.txt"
        path.write_bytes(mark + "größe\r\ncat\r\n\r\n".encode())
        assert sorted_names(["cat", "größe"], str(path)) == ["größe", "cat"]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"cat\ncat\ndog\n", "names class 'cat' twice"),
            (b"cat\n", "does not name class 'dog'"),
            (b"cat\ndog\ncow\n", "names 'cow', which is no class"),
            (b"cat\nd\xf6g\n", "no text in UTF-8"),
            ("cat\ndog\n".encode("utf-16"), "no text in UTF-8"),
        ],
    )
    def test_a_wrong_one_is_refused(self, tmp_path: Path, content: bytes, problem: str) -> None:
        path = tmp_path / "classes.txt"
        path.write_bytes(content)
        with pytest.raises(DataError, match=problem):
            sorted_names(["cat", "dog"], str(path))

    def test_a_missing_one_is_refused_with_the_choices(self) -> None:
        with pytest.raises(UsageError, match="--class-order alphabetic: expected text, natural, or a file"):
            sorted_names(["cat", "dog"], "alphabetic")

    def test_a_folder_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            sorted_names(["cat", "dog"], str(tmp_path))


class TestLabels:
    def test_they_follow_the_order(self, root: Path) -> None:
        text, natural = (open_data(f"folder:{root}", class_order=order) for order in (TEXT, NATURAL))
        assert (text.classes, natural.classes) == (IN_TEXT, list(NUMBERS))
        assert text.digest() == open_data(f"folder:{root}").digest() != natural.digest()
        for data in (text, natural):
            assert torch.bincount(data.batches(CFG, (12, 12)).labels).tolist() == [2] * 12

    def test_the_same_image_has_the_same_name(self, root: Path) -> None:
        named = []
        for order in (TEXT, NATURAL):
            data = open_data(f"folder:{root}", class_order=order)
            pairs = zip(*next(iter(data.batches(CFG, (12, 12)))), strict=True)
            named.append({(data.classes[label], image.numpy().tobytes()) for image, label in pairs})
        assert named[0] == named[1]
        assert len(named[0]) == 24


class TestSettling:
    def test_without_a_word_from_the_weights_it_is_refused(self, root: Path) -> None:
        line = r"class '10' is number 3 in text order .* number 11 in natural .* w\.pth do not say .*--class-order"
        with pytest.raises(DataError, match=line):
            open_data(f"folder:{root}").settle_order(None, "w.pth")

    @pytest.mark.parametrize(("trained", "order"), [(IN_TEXT, TEXT), (list(NUMBERS), NATURAL)])
    def test_the_weights_decide(self, root: Path, trained: list[str], order: str) -> None:
        data = open_data(f"folder:{root}")
        before = data.digest()
        data.settle_order(trained, "w.pth")
        assert (data.classes, data.class_order) == (trained, order)
        assert (data.digest() == before) == (order == TEXT)
        again = open_data(data.spec, class_order=data.class_order)
        assert again.digest() == data.digest()

    def test_part_of_the_classes_may_decide(self, root: Path) -> None:
        data = open_data(f"folder:{root}")
        data.settle_order(["zero", "one", "2"], "w.pth")
        assert data.class_order == NATURAL

    def test_weights_of_a_third_order_are_refused(self, root: Path) -> None:
        with pytest.raises(DataError, match=r"w\.pth learned it as number"):
            open_data(f"folder:{root}").settle_order(NUMBERS[::-1], "w.pth")

    def test_a_chosen_order_that_the_weights_contradict_is_refused(self, root: Path) -> None:
        with pytest.raises(DataError, match=r"class '10' is number 3, but w\.pth learned it as number 11"):
            open_data(f"folder:{root}", class_order=TEXT).settle_order(NUMBERS, "w.pth")

    def test_a_chosen_order_needs_no_word_from_the_weights(self, root: Path) -> None:
        data = open_data(f"folder:{root}", class_order=NATURAL)
        data.settle_order(None, "w.pth")
        assert data.classes == list(NUMBERS)

    def test_random_weights_know_no_order(self, root: Path) -> None:
        data = open_data(f"folder:{root}")
        data.settle_order(None, None)
        assert data.class_order == TEXT

    def test_a_fallback_replaces_the_refusal_alone(self, root: Path) -> None:
        data = open_data(f"folder:{root}", fallback=TEXT)
        data.settle_order(None, "w.pth")
        assert data.class_order == TEXT
        data = open_data(f"folder:{root}", fallback=TEXT)
        data.settle_order(NUMBERS, "w.pth")
        assert data.class_order == NATURAL

    def test_names_in_one_order_leave_nothing_to_settle(self, tmp_path: Path) -> None:
        data = open_data(f"folder:{write_folder(tmp_path, ('n01440764', 'n02102040'))}")
        data.settle_order(None, "w.pth")
        assert data.class_order is None

    def test_classes_of_one_name_must_be_where_one_of_them_is(self) -> None:
        """ImageNet has two cranes, and weights that `train` wrote on it name both."""
        names = ["10", "2", "crane", "cat", "crane"]
        data = ImageData("names", Named(names, declares_order=True))
        data.settle_order(names, "w.pth")
        data.settle_order([*names[:3], "dog", "crane"], "w.pth")
        with pytest.raises(DataError, match=r"class 'crane' is number 3, but w\.pth learned it as number 4"):
            data.settle_order(["10", "2", "cat", "crane", "crane"], "w.pth")

    @pytest.mark.parametrize("declared", [True, False])
    def test_an_order_that_the_data_set_declares_is_not_asked_for(self, declared: bool) -> None:
        data = ImageData("names", Named(IN_TEXT, declares_order=declared))
        if declared:
            data.settle_order(None, "w.pth")
            assert data.classes == IN_TEXT
            return
        with pytest.raises(DataError, match="choose with --class-order"):
            data.settle_order(None, "w.pth")

    def test_a_hub_folder_is_sorted_by_text_too(self, root: Path) -> None:
        pytest.importorskip("datasets")
        data = open_data(f"hf:{root}")
        assert data.classes == IN_TEXT
        with pytest.raises(DataError, match="choose with --class-order"):
            data.settle_order(None, "w.pth")
        assert open_data(f"hf:{root}", class_order=NATURAL).classes == list(NUMBERS)
