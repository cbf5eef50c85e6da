"""Data sets by name: their images, the order of these, and the errors of broken ones."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from search.data.dataset import ImageData, open_data
from search.data.source import DIGITS, Source, Split
from search.data.sources import FolderSource
from spaces import errors
from tests.search.pictures import noise, write_folder

CFG = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic", "crop_pct": 1.0}


class CountingSource:
    """A source whose splits count how often each image is read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.classes, self.augmentation = source.classes, source.augmentation
        self.task, self.colours = source.task, source.colours
        self.reads: list[int] = []

    def split(self, name: str) -> Split:
        split = self._source.split(name)
        self.reads = [0] * len(split.labels)
        return CountingSplit(split, self.reads)


class CountingSplit:
    def __init__(self, split: Split, reads: list[int]) -> None:
        self._split, self.labels, self._reads = split, split.labels, reads
        self.mask, self.update = split.mask, split.update
        self.notes, self.first_turned = split.notes, split.first_turned

    def image(self, index: int) -> Image.Image:
        self._reads[index] += 1
        return self._split.image(index)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("embedded")


class TestEmbedded:
    def test_sizes_are_balanced(self, digits: ImageData) -> None:
        assert (digits.size("train"), digits.size("val"), digits.num_classes) == (4000, 1000, 10)
        assert torch.bincount(digits.batches(CFG, (28, 28)).labels).tolist() == [100] * 10
        assert torch.bincount(digits.batches(CFG, (28, 28), "train").labels).tolist() == [400] * 10

    def test_no_image_is_in_both_splits(self, digits: ImageData) -> None:
        train = digits.batches(CFG, (28, 28), "train").pixels(4000).flatten(1).numpy()
        val = digits.batches(CFG, (28, 28)).pixels(1000).flatten(1).numpy()
        assert not {row.tobytes() for row in train} & {row.tobytes() for row in val}

    def test_the_split_never_changes(self, digits: ImageData) -> None:
        # the shipped weights were trained on this train split; another one would leak val into it
        assert digits.digest("val") == "465a40d087f85e930e1a53740f126ed3b95562bc788c94896e83e817e1c3f555"

    def test_digits_are_not_mirrored(self, digits: ImageData) -> None:
        assert not digits.augmentation.flip


class TestOrder:
    def test_fewer_images_are_a_prefix_of_more(self, digits: ImageData) -> None:
        few, many = digits.batches(CFG, (28, 28), images=70), digits.batches(CFG, (28, 28), images=500)
        assert torch.equal(few.labels, many.labels[:70])
        assert torch.equal(few.pixels(70), many.pixels(70))

    def test_it_is_reproducible(self, digits: ImageData) -> None:
        one, other = (
            digits.batches(CFG, (28, 28), images=100),
            open_data("embedded").batches(CFG, (28, 28), images=100),
        )
        assert torch.equal(next(iter(one))[0], next(iter(other))[0])
        assert torch.equal(next(iter(one))[0], next(iter(one))[0])


class TestBatches:
    def test_images_are_normalised_as_torchvision_does(self, folder: Path) -> None:
        images, labels = next(iter(open_data(f"folder:{folder}").batches(CFG, (12, 12), batch_size=12)))
        expected = {
            label: {
                normalize(to_tensor(Image.open(p)), CFG["mean"], CFG["std"])
                for p in (folder / "val" / name).iterdir()
            }
            for label, name in enumerate(("cat", "dog"))
        }
        assert images.dtype == torch.float32
        for image, label in zip(images, labels.tolist(), strict=True):
            assert any(torch.allclose(image, other, atol=1e-5) for other in expected[label])

    def test_the_last_batch_may_be_shorter(self, folder: Path) -> None:
        batches = open_data(f"folder:{folder}").batches(CFG, (12, 12), batch_size=5)
        assert [len(labels) for _, labels in batches] == [5, 5, 2]
        assert (len(batches), batches.images) == (3, 12)

    def test_a_split_beyond_the_memory_limit_gives_the_same(self, folder: Path) -> None:
        kept, streamed = (
            [images for images, _ in open_data(f"folder:{folder}", limit).batches(CFG, (8, 8), batch_size=5)]
            for limit in (2**30, 10)
        )
        assert all(torch.equal(a, b) for a, b in zip(kept, streamed, strict=True))

    @pytest.mark.parametrize(("limit", "reads"), [(2**30, 1), (10, 2)])
    def test_a_split_is_kept_only_within_the_memory_limit(self, folder: Path, limit: int, reads: int) -> None:
        source = CountingSource(FolderSource(folder))
        batches = ImageData("counting", source, limit).batches(CFG, (8, 8))
        for _ in range(2):
            list(batches)
        assert source.reads == [reads] * 12

    def test_resize_and_crop_follow_the_model(self, tmp_path: Path) -> None:
        root = write_folder(tmp_path, each=1)
        wide = Image.new("RGB", (60, 20))
        wide.paste((255, 255, 255), (20, 0, 40, 20))  # the middle third is white
        wide.save(root / "val" / "cat" / "0.png")
        batches = open_data(f"folder:{root}").batches(CFG, (20, 20))
        middle = batches.pixels(2)[batches.labels.tolist().index(0)]
        assert middle.shape == (3, 20, 20)
        assert middle.min() == 255

    def test_grey_and_palette_images_become_rgb(self, folder: Path) -> None:
        noise(1).convert("L").save(folder / "val" / "cat" / "0.png")
        noise(2).convert("P").save(folder / "val" / "cat" / "1.png")
        assert next(iter(open_data(f"folder:{folder}").batches(CFG, (12, 12))))[0].shape == (12, 3, 12, 12)

    @pytest.mark.parametrize("mode", ["I;16", "F"])
    def test_more_than_8_bits_are_refused(self, folder: Path, mode: str) -> None:
        broken = folder / "val" / sorted(p.name for p in (folder / "val").iterdir())[0] / "deep.tiff"
        Image.new(mode, (8, 8), 3000).save(broken)
        with pytest.raises(errors.DataError, match=r"deep\.tiff: has more than 8 bits a channel"):
            list(open_data(f"folder:{folder}").batches(CFG, (8, 8)))

    def test_skipped_and_remaining_images_make_up_the_split(self, digits: ImageData) -> None:
        order = digits.batches(CFG, (28, 28)).pixels(1000)
        searched, rest = digits.batches(CFG, (28, 28), images=300), digits.batches(CFG, (28, 28), skip=300)
        assert torch.equal(torch.cat([searched.pixels(300), rest.pixels(700)]), order)
        part = digits.batches(CFG, (28, 28), images=50, skip=300, batch_size=20)
        assert [len(labels) for _, labels in part] == [20, 20, 10]
        assert torch.equal(part.pixels(50), order[300:350])
        both = torch.bincount(searched.labels) + torch.bincount(rest.labels)
        assert both.tolist() == [100] * 10
        stratified = digits.batches(CFG, (28, 28), skip=300, order="stratified")
        assert torch.bincount(stratified.labels).tolist() == [70] * 10

    @pytest.mark.parametrize("skip", [-1, 1000, 2000])
    def test_skipping_all_is_refused(self, digits: ImageData, skip: int) -> None:
        with pytest.raises(errors.UsageError, match=f"skip={skip}: val has 1000 images"):
            digits.batches(CFG, (28, 28), skip=skip)

    @pytest.mark.parametrize(("images", "batch_size"), [(0, 10), (-3, 10), (None, 0)])
    def test_bad_numbers_are_refused(self, digits: ImageData, images: int | None, batch_size: int) -> None:
        with pytest.raises(errors.UsageError, match="at least 1"):
            digits.batches(CFG, (28, 28), images=images, batch_size=batch_size)


class TestDigest:
    def test_it_depends_on_content_and_label(self, folder: Path) -> None:
        before = open_data(f"folder:{folder}").digest()
        assert open_data(f"folder:{folder}").digest() == before
        (folder / "val" / "cat" / "0.png").rename(folder / "val" / "dog" / "9.png")
        moved = open_data(f"folder:{folder}").digest()
        noise(77).save(folder / "val" / "dog" / "9.png")
        assert len({before, moved, open_data(f"folder:{folder}").digest()}) == 3

    def test_it_does_not_depend_on_where_the_folder_lies(self, folder: Path) -> None:
        before = open_data(f"folder:{folder}").digest()
        assert open_data(f"folder:{folder.rename(folder.with_name('elsewhere'))}").digest() == before

    def test_splits_differ(self, digits: ImageData) -> None:
        assert digits.digest("train") != digits.digest("val")


class TestAugmentation:
    def test_folders_of_digits_are_not_mirrored(self, tmp_path: Path) -> None:
        assert open_data(f"folder:{write_folder(tmp_path, ('0', '1'))}").augmentation == DIGITS


class TestTestSplit:
    """The split `test`, on which a front may be confirmed."""

    def test_a_folder_may_have_one(self, folder: Path) -> None:
        data = open_data(f"folder:{folder}")
        with pytest.raises(errors.DataError, match="no test/ in it"):
            data.size("test")
        (folder / "val").rename(folder / "test")
        data = open_data(f"folder:{folder}")
        assert data.size("test") == 12
        assert data.digest("test") != data.digest("train")
        with pytest.raises(errors.DataError, match="no val/ in it"):
            data.size("val")

    @pytest.mark.parametrize("classes", [(), ("cat",), ("cat", "wolf")])
    def test_a_foreign_test_folder_only_matters_when_used(self, folder: Path, classes: tuple[str, ...]) -> None:
        """A folder `test` of unlabelled images is common."""
        write_folder(folder / "more", ("cat", "wolf"))
        (folder / "test").mkdir()
        noise(3).save(folder / "test" / "unlabelled.png")
        for name in classes:
            (folder / "more" / "val" / name).rename(folder / "test" / name)
        data = open_data(f"folder:{folder}")
        assert (data.size("train"), data.size("val")) == (12, 12)
        with pytest.raises(
            errors.DataError, match="different classes: 'dog' is only in train" if classes else "no images"
        ):
            data.size("test")

    def test_the_embedded_images_have_none(self, digits: ImageData) -> None:
        with pytest.raises(errors.DataError, match=r"embedded: it has no test split; .* the split rest") as caught:
            digits.size("test")
        assert "\n" not in str(caught.value)

    def test_torchvisions_test_set_is_val(self, tmp_path: Path) -> None:
        TestTorchvision.write_mnist(tmp_path)
        with pytest.raises(
            errors.DataError, match=r"torchvision:MNIST: its test set is val; .* the split rest"
        ) as caught:
            open_data(f"torchvision:MNIST:{tmp_path}").digest("test")
        assert "\n" not in str(caught.value)

    def test_the_hubs_test_split_is_not_used_twice(self, folder: Path) -> None:
        pytest.importorskip("datasets")
        (folder / "val").rename(folder / "test")
        data = open_data(f"hf:{folder}")
        assert data.size("val") == 12
        with pytest.raises(errors.DataError, match="its test split is val"):
            data.size("test")
        write_folder(folder, split_names=("val",))
        data = open_data(f"hf:{folder}")
        assert (data.size("val"), data.size("test")) == (12, 12)

    def test_unknown_splits_are_refused(self, digits: ImageData) -> None:
        with pytest.raises(errors.UnknownNameError, match="unknown split 'tset'"):
            digits.size("tset")


class TestTorchvision:
    @staticmethod
    def write_mnist(root: Path) -> None:
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, count in (("train", 20), ("t10k", 10)):
            pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
            (raw / f"{name}-images-idx3-ubyte").write_bytes(
                struct.pack(">iiii", 2051, count, 28, 28) + pixels.tobytes()
            )
            labels = (np.arange(count) % 10).astype(np.uint8)
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())

    def test_a_data_set_on_disk(self, tmp_path: Path) -> None:
        self.write_mnist(tmp_path)
        data = open_data(f"torchvision:MNIST:{tmp_path}")
        assert (data.size("train"), data.size("val"), data.num_classes) == (20, 10, 10)
        images, labels = next(iter(data.batches(CFG, (28, 28))))
        assert images.shape == (10, 3, 28, 28)
        assert sorted(labels.tolist()) == list(range(10))
        assert data.augmentation == DIGITS

    def test_a_missing_data_set_says_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(errors.DataError, match=r"not under .*CIFAR10\(.*download=True\)") as caught:
            open_data(f"torchvision:CIFAR10:{tmp_path}")
        assert "\n" not in str(caught.value)

    def test_an_unknown_name_suggests_the_nearest(self) -> None:
        with pytest.raises(errors.UnknownNameError, match="did you mean 'CIFAR10'"):
            open_data("torchvision:CIFAR")


class TestHub:
    def test_a_folder_of_images(self, folder: Path) -> None:
        pytest.importorskip("datasets")
        data = open_data(f"hf:{folder}")
        assert (data.classes, data.size("train"), data.size("val")) == (["cat", "dog"], 12, 12)
        ours = open_data(f"folder:{folder}").batches(CFG, (12, 12))
        assert torch.equal(data.batches(CFG, (12, 12)).pixels(12), ours.pixels(12))
        assert data.digest() == open_data(f"hf:{folder}").digest()

    def test_a_missing_data_set_is_an_error(self, tmp_path: Path) -> None:
        # without the package, the same error says how to install it
        with pytest.raises(errors.DataError, match="hf:") as caught:
            open_data(f"hf:{tmp_path / 'missing'}")
        assert "\n" not in str(caught.value)


class TestNames:
    def test_a_data_set_is_opened_again_by_its_spec(self, folder: Path) -> None:
        for spec in ("embedded", f"folder:{folder}"):
            data = open_data(f" {spec} ")
            assert data.spec == spec
            assert open_data(data.spec).digest() == data.digest()

    def test_a_classification_data_set_has_no_masks_or_colours(self, folder: Path) -> None:
        data = open_data(f"folder:{folder}")
        assert (data.task.name, list(data.colours)) == ("classification", [])
        with pytest.raises(errors.DataError, match="image 0 has no mask"):
            data.training_split().mask(0)


class TestErrors:
    @pytest.mark.parametrize(
        "spec", ["", "embeded", "embedded:x", "folder", "folder:", "torchvision:", "hf:", "imagenet"]
    )
    def test_malformed_names(self, spec: str) -> None:
        with pytest.raises(errors.UsageError):
            open_data(spec)

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(errors.DataError, match="no such folder"):
            open_data(f"folder:{tmp_path / 'nowhere'}")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        with pytest.raises(errors.DataError, match="neither train/ nor val/"):
            open_data(f"folder:{tmp_path}")

    def test_a_split_without_classes(self, tmp_path: Path) -> None:
        (tmp_path / "val").mkdir()
        with pytest.raises(errors.DataError, match="no images"):
            open_data(f"folder:{tmp_path}")

    def test_a_class_without_images(self, folder: Path) -> None:
        for image in (folder / "val" / "dog").iterdir():
            image.rename(image.with_suffix(".txt"))
        with pytest.raises(errors.DataError, match=r"val/dog: no images"):
            open_data(f"folder:{folder}").size("val")

    def test_val_is_enough_to_evaluate(self, folder: Path) -> None:
        (folder / "train").rename(folder / "other")
        data = open_data(f"folder:{folder}")
        assert data.size("val") == 12
        with pytest.raises(errors.DataError, match="no train/"):
            data.training_split()

    def test_classes_that_differ(self, folder: Path) -> None:
        (folder / "train" / "dog").rename(folder / "train" / "wolf")
        with pytest.raises(errors.DataError, match=r"'dog' is only in val, and 1 more"):
            open_data(f"folder:{folder}")

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\0\0"])
    def test_a_broken_image_is_named(self, folder: Path, content: bytes) -> None:
        (folder / "val" / "dog" / "3.png").write_bytes(content)
        with pytest.raises(errors.DataError, match=r"val/dog/3\.png: not a readable image") as caught:
            list(open_data(f"folder:{folder}").batches(CFG, (12, 12)))
        assert "\n" not in str(caught.value)

    def test_a_truncated_image_is_named(self, folder: Path) -> None:
        path = folder / "val" / "cat" / "2.png"
        path.write_bytes(path.read_bytes()[:-60])
        with pytest.raises(errors.DataError, match=r"cat/2\.png: not a readable image"):
            list(open_data(f"folder:{folder}").batches(CFG, (12, 12)))

    def test_names_in_another_encoding(self, folder: Path) -> None:
        """File names are only hashed, but class names are shown and stored."""
        first = min((folder / "val").iterdir())
        Image.new("RGB", (4, 4)).save(first / os.fsdecode(b"caf\xe9.png"))
        assert len(open_data(f"folder:{folder}").digest()) == 64
        for split in ("train", "val"):
            (folder / split / first.name).rename(folder / split / os.fsdecode(b"caf\xe9"))
        with pytest.raises(errors.DataError, match=r"class 'caf\\udce9' is no text in UTF-8; rename it"):
            open_data(f"folder:{folder}")

    def test_a_dangling_link_is_named(self, folder: Path) -> None:
        dead = next((folder / "val").iterdir()) / "dead.png"
        dead.symlink_to("nowhere.png")
        with pytest.raises(errors.DataError, match=r"dead\.png: cannot be read: No such file"):
            open_data(f"folder:{folder}").digest()

    def test_classes_in_another_order_are_refused(self, digits: ImageData) -> None:
        digits.check_order([str(digit) for digit in range(10)], "w")
        digits.check_order(["zero", "one"], "w")  # other names say nothing
        with pytest.raises(errors.DataError, match=r"class '0' is number 1, but w learned it as number 2"):
            digits.check_order(["1", "0", *"23456789"], "w")

    def test_a_model_of_other_classes_is_refused(self, digits: ImageData) -> None:
        digits.check_classes(10)
        with pytest.raises(errors.DataError, match="has 10 classes but vim_tiny answers with 1000"):
            digits.check_classes(1000, "vim_tiny")
