"""Images with masks, cut into tiles."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from search.data.dataset import open_data
from search.data.preprocessing import Preprocessing
from search.data.tiles import NO_CLASS, TileSource, shares, starts
from search.training.batches import TrainingBatches
from spaces.errors import DataError, UsageError
from tests.search.landscapes import LAND, WATER, description, landscape, write_landscapes

CFG = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_landscapes(tmp_path / "lands")


@given(st.integers(1, 500), st.integers(1, 200), st.floats(0, 0.9))
def test_windows_cover_a_length_and_overlap(length: int, window: int, overlap: float) -> None:
    window = min(length, window)
    found = starts(length, window, overlap)
    assert found[0] == 0 and found[-1] == length - window
    assert all(0 < b - a <= max(1, window * (1 - overlap)) + 1 for a, b in pairwise(found))
    if overlap == 0:
        assert len(found) == -(-length // window)  # no more than necessary


def is_part_of(mask: Any, expected: Any) -> bool:
    """Whether a tile's mask, where it counts, is `expected`."""
    found = np.asarray(mask)
    counted = found != NO_CLASS
    return bool(counted.any()) and np.array_equal(found[counted], expected[counted])


@given(st.integers(1, 40), st.integers(1, 150))
def test_every_place_counts_in_one_window(window: int, more: int) -> None:
    begins = starts(window + more, window, 0.0)
    counted = np.zeros(window + more, dtype=int)
    for start, (begin, end) in zip(begins, shares(begins, window), strict=True):
        assert 0 <= begin < end <= window
        counted[start + begin : start + end] += 1
    assert (counted == 1).all()


def test_every_pixel_of_val_counts_once_and_those_of_train_in_every_tile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for name, shape in (("a", (20, 33)), ("b", (16, 16)), ("c", (17, 40))):
            Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(
                tmp_path / split / f"images/{name}.png"
            )
            Image.fromarray(rng.integers(0, 2, shape, dtype=np.uint8)).save(tmp_path / split / f"masks/{name}.png")
    classes = [{"name": "one", "id": 0}, {"name": "two", "id": 1}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "window": 16, "overlap": 0.0}))
    pixels = {}
    for split in ("train", "val"):
        tiles = TileSource(tmp_path).split(split)
        masks = [np.asarray(tiles.mask(i)) for i in range(len(tiles.labels))]
        pixels[split] = sum((mask != NO_CLASS).sum() for mask in masks)
    assert pixels["val"] == 20 * 33 + 16 * 16 + 17 * 40
    assert pixels["train"] == len(masks) * 16 * 16 > pixels["val"]
    ones = sum((mask == 1).sum() for mask in masks)
    whole = [np.asarray(Image.open(tmp_path / f"val/masks/{name}.png")) for name in "abc"]
    assert ones == sum(mask.sum() for mask in whole)


def test_tiles_and_their_masks(root: Path) -> None:
    source = TileSource(root)
    assert source.classes == ["water", "land"] and source.colours == [WATER, LAND]
    train, val = source.split("train"), source.split("val")
    assert len(val.labels) == 2 * 4 and len(train.labels) == 3 * 4
    image, land = landscape(100)
    corners = [(0, 0), (16, 0), (0, 8), (16, 8)]
    for index, (left, top) in enumerate(corners):
        assert np.array_equal(np.asarray(val.image(index)), image[top : top + 32, left : left + 32])
        expected = land[top : top + 32, left : left + 32].astype(np.uint8)
        if (left, top) == (0, 0):
            expected[:3, :4] = NO_CLASS
        assert is_part_of(val.mask(index), expected)


def test_batches_of_images_and_masks(root: Path) -> None:
    data = open_data(f"segmentation:{root}")
    assert data.task.name == "segmentation" and data.num_classes == 2
    batches = data.batches(CFG, (16, 16), batch_size=3)
    parts = list(batches)
    assert [tuple(images.shape) for images, _ in parts] == [(3, 3, 16, 16), (3, 3, 16, 16), (2, 3, 16, 16)]
    masks = torch.cat([mask for _, mask in parts])
    assert masks.shape == (8, 16, 16) and masks.dtype == torch.int64
    assert set(masks.unique().tolist()) == {0, 1, NO_CLASS}
    bright = torch.cat([images for images, _ in parts]).mean(1) > 0
    known = masks != NO_CLASS
    assert (bright == (masks == 1))[known].double().mean() > 0.9  # the masks lie on their images
    assert sorted(batches.labels[:2].tolist()) == [0, 1]  # the first tiles are of both images
    assert batches.pixels(2).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("limit", [2**30, 0])
def test_training_moves_masks_with_their_images(root: Path, limit: int) -> None:
    data = open_data(f"segmentation:{root}", limit)
    batches = TrainingBatches(data, Preprocessing(CFG, (32, 32)), 4)
    images, masks = (torch.cat(parts) for parts in zip(*batches.epoch(1), strict=True))
    again, _ = next(iter(batches.epoch(1)))
    assert torch.equal(images[:4], again)
    known = masks != NO_CLASS
    assert 0.5 < known.double().mean() < 0.99  # pixels from beyond the edges have no class
    assert ((images.mean(1) > 0) == (masks == 1))[known].double().mean() > 0.9


def test_the_digest_covers_masks_and_their_meaning(root: Path) -> None:
    def digest() -> str:
        return open_data(f"segmentation:{root}").digest("val")

    before = digest()
    assert digest() == before
    content = description(window=16)
    (root / "classes.json").write_text(json.dumps(content))
    assert digest() != before
    (root / "classes.json").write_text(json.dumps(description()))
    assert digest() == before
    path = root / "val" / "masks" / "part_0.png"
    mask = np.array(Image.open(path))
    mask[10, 10] = LAND if tuple(mask[10, 10]) == WATER else WATER
    Image.fromarray(mask).save(path)
    assert digest() != before
    assert len(hashlib.sha256(before.encode()).hexdigest()) == len(before)


def test_decoded_images_are_dropped_beyond_the_limit(root: Path) -> None:
    split = TileSource(root, decoded_limit=1).split("train")
    whole = [np.asarray(split.image(index)) for index in range(12)]
    assert len(split.decoded) == 1
    assert all(np.array_equal(np.asarray(split.image(index)), whole[index]) for index in (11, 0, 5))


IDS = [{"name": "water", "id": 7}, {"name": "land", "id": 300}]


@pytest.mark.parametrize("mode", ["palette", "palette of ids", "16 bits"])
def test_masks_of_other_kinds(root: Path, mode: str) -> None:
    """A palette is read by its colours, or by its indices if classes have ids; ids may have 16 bits."""
    path = root / "val" / "masks" / "part_0.png"
    _, land = landscape(100)
    if mode == "palette":
        Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=3).save(path)
        split = TileSource(root).split("val")
        mask = np.asarray(split.mask(3))
    else:
        low = mode == "palette of ids"
        classes = [IDS[0], IDS[1] | {"id": 9}] if low else IDS
        values = np.where(land, classes[1]["id"], 7)
        if low:
            picture = Image.fromarray(values.astype(np.uint8), "P")
            picture.putpalette([i for _ in range(256) for i in (1, 2, 3)])
            picture.save(path)
        else:
            Image.fromarray(values.astype(np.uint16)).save(path)
        (root / "classes.json").write_text(json.dumps(description(classes=classes, ignore=[])))
        mask = np.asarray(TileSource(root).split("val").mask(3))
    assert is_part_of(mask, land[8:40, 16:48].astype(np.uint8))


def grey_png(path: Path, values: np.ndarray, bits: int) -> None:
    """Write a grey PNG of 2 or 4 bits, which Pillow reads and cannot write."""
    height, width = values.shape
    planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in planes)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))
            for kind, inner in parts.items()
        )
    )


@pytest.mark.parametrize("form", ["2 bits", "4 bits", "pgm of 5", "pgm of 1000", "plain pgm of 3", "1 bit"])
def test_ids_are_read_as_written(root: Path, form: str) -> None:
    """Pillow stretches such values to 0 … 255, or 65535: an id of 1 would become 85."""
    path = root / "val" / "masks" / "part_0.png"
    _, land = landscape(100)
    values = land.astype(np.uint8)
    highest = 1000 if form == "pgm of 1000" else 5 if form == "pgm of 5" else 3
    if "pgm" in form:
        path.unlink()
        path = path.with_suffix(".pgm")
        head = f"{'P2' if 'plain' in form else 'P5'} 48 40 {highest}\n".encode()
        text = " ".join(map(str, values.flat)).encode()
        path.write_bytes(
            head + (text if "plain" in form else values.astype(">u2" if highest > 255 else "u1").tobytes())
        )
    elif form == "1 bit":
        Image.fromarray(land).save(path)
    else:
        grey_png(path, values, int(form[0]))
    classes = [{"name": "water", "id": 0}, {"name": "land", "id": 1}]
    (root / "classes.json").write_text(json.dumps(description(classes=classes, ignore=[])))
    assert is_part_of(TileSource(root).split("val").mask(3), values[8:40, 16:48])


def test_ids_that_are_stored_inverted_are_refused(root: Path) -> None:
    path = root / "val" / "masks" / "part_0.png"
    path.unlink()
    Image.fromarray(landscape(100)[1]).save(path.with_suffix(".ppm"))  # of 1 bit, in which 1 is black
    classes = [{"name": "water", "id": 0}, {"name": "land", "id": 1}]
    (root / "classes.json").write_text(json.dumps(description(classes=classes, ignore=[])))
    with pytest.raises(DataError, match=r"part_0\.ppm: its grey values are stored inverted"):
        TileSource(root).split("val").mask(3)


def small_image(root: Path) -> None:
    for kind in ("images", "masks"):
        path = root / "val" / kind / "part_1.png"
        Image.open(path).crop((0, 0, 40, 31)).save(path)


def other_size(root: Path) -> None:
    path = root / "val" / "masks" / "part_1.png"
    Image.open(path).crop((0, 0, 47, 40)).save(path)


def odd_colour(root: Path) -> None:
    path = root / "val" / "masks" / "part_0.png"
    mask = np.array(Image.open(path))
    mask[5, 9] = (1, 2, 3)
    Image.fromarray(mask).save(path)


def deep_mask(root: Path) -> None:
    Image.fromarray(np.full((40, 48), 300, dtype=np.uint16)).save(root / "val" / "masks" / "part_0.png")


def deep_image(root: Path) -> None:
    Image.fromarray(np.full((40, 48), 300, dtype=np.uint16)).save(root / "val" / "images" / "part_0.png")


def unknown_id(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(description(classes=IDS, ignore=[])))
    for number, value in enumerate((301, 300)):
        Image.fromarray(np.full((40, 48), value, dtype=np.uint16)).save(root / f"val/masks/part_{number}.png")


def no_mask(root: Path) -> None:
    (root / "val" / "masks" / "part_1.png").unlink()


def no_image(root: Path) -> None:
    (root / "val" / "images" / "part_0.png").unlink()


def broken(root: Path) -> None:
    (root / "val" / "masks" / "part_0.png").write_bytes(b"\x89PNG no more")


def ids_wanted(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(description(classes=IDS, ignore=[])))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (small_image, r"images/part_1\.png: 40×31 pixels, smaller than the window of 32"),
        (other_size, r"masks/part_1\.png: 47×40 pixels, but its image .*images/part_1\.png has 48×40$"),
        (odd_colour, r"masks/part_0\.png: colour #010203 at \(9, 5\) is no class of classes\.json"),
        (deep_mask, r"masks/part_0\.png: a mask of 16 bits has no colours"),
        (deep_image, r"images/part_0\.png: has more than 8 bits a channel"),
        (unknown_id, r"masks/part_0\.png: id 301 at \(0, 0\) is no class"),
        (no_mask, r"images/part_1\.png: no mask part_1\.\* in"),
        (no_image, r"masks/part_0\.png: no image part_0\.\* in"),
        (broken, r"masks/part_0\.png: not a readable image"),
        (ids_wanted, r"masks/part_[01]\.png: a mask of colours \(RGB\); give the classes colours"),
    ],
)
def test_errors_are_one_line_that_names_the_file(root: Path, spoil: Callable[[Path], None], line: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=line) as caught:
        list(open_data(f"segmentation:{root}").batches(CFG, (32, 32)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "not readable as JSON"),
        ("[]", "classes.json: "),
        ('{"window": 3}', "'classes' is missing"),
        (json.dumps(description(classes=[])), "0 classes"),
        (json.dumps(description(window=0)), "window 0"),
        (json.dumps(description(overlap=1)), "overlap 1"),
        (json.dumps(description(ignore=["#8429F6"])), "two classes have the same color"),
        (json.dumps(description(ignore=["purplish"])), "unknown color"),
        (json.dumps(description(classes=[{"name": "a", "id": "b"}], ignore=[])), "id 'b'"),
    ],
)
def test_a_wrong_description_is_refused(root: Path, content: str, line: str) -> None:
    (root / "classes.json").write_text(content)
    with pytest.raises(DataError, match=line):
        open_data(f"segmentation:{root}")


def test_a_description_may_begin_with_a_byte_order_mark_in_any_locale(root: Path) -> None:
    content = description(classes=[{"name": "Gewässer", "id": 1}, {"name": "land", "id": 2}], ignore=[])
    (root / "classes.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    assert open_data(f"segmentation:{root}").classes == ["Gewässer", "land"]


def test_missing_folders_are_errors(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_data(f"segmentation:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"test/images: no such folder"):
        open_data(f"segmentation:{root}").size("test")
    (root / "classes.json").unlink()
    with pytest.raises(DataError, match=r"classes\.json: no such file"):
        open_data(f"segmentation:{root}")


def turned(path: Path, orientation: int) -> None:
    """Store an image as a camera that was held sideways does: the same to a viewer, by its EXIF orientation."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.open(path).transpose(back[orientation]).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kinds", [("images",), ("masks",), ("images", "masks")])
def test_images_and_masks_are_turned_alike(root: Path, orientation: int, kinds: tuple[str, ...]) -> None:
    expected = TileSource(root).split("val")
    seen = [(expected.image(i).tobytes(), expected.mask(i).tobytes()) for i in range(len(expected.labels))]
    for kind in kinds:
        turned(root / "val" / kind / "part_0.png", orientation)
    found = TileSource(root).split("val")
    assert [(found.image(i).tobytes(), found.mask(i).tobytes()) for i in range(len(found.labels))] == seen
    note = "1 image turned by EXIF orientation; masks that have none are taken as drawn on the upright image"
    notes = [f"{root / 'val'}: {note}"]
    assert list(found.notes()) == (notes if kinds == ("images",) else [])


def test_a_mask_drawn_on_the_stored_pixels_is_refused(root: Path) -> None:
    for kind in ("images", "masks"):
        turned(root / "val" / kind / "part_0.png", 6)
    mask = root / "val" / "masks" / "part_0.png"
    pixels = np.array(Image.open(mask))
    Image.fromarray(pixels).save(mask)  # without EXIF
    line = r"masks/part_0\.png: 40×48 pixels, but its image .*images/part_0\.png has 48×40 when upright \(EXIF or"
    with pytest.raises(DataError, match=line):
        TileSource(root).split("val")


def test_ids_are_turned_too(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(description(classes=IDS, ignore=[])))
    ids = np.where(np.arange(48)[None] < 20, 300, 7).repeat(40, 0).reshape(40, 48).astype(np.uint16)
    exif = Image.Exif()
    exif[0x112] = 6
    for number in range(2):
        image = Image.fromarray(np.ascontiguousarray(np.rot90(ids)))
        image.save(root / f"val/masks/part_{number}.png", exif=exif)
    values = sorted(one["id"] for one in IDS)
    assert values == [7, 300]
    mask = np.asarray(TileSource(root).split("val").mask(0))
    assert len(np.unique(mask[:, :16][mask[:, :16] != NO_CLASS])) == 1


def test_what_a_folder_of_tiles_leaves_out_is_said(root: Path) -> None:
    for kind in ("images", "masks"):
        Image.new("RGB", (40, 40)).save(root / "val" / kind / "more.gif")
    (root / "val" / "images" / "x.png").mkdir()
    (root / "val" / "images" / ".hidden.png").write_text("")
    assert list(TileSource(root).split("val").notes()) == [
        f"{root / 'val' / 'images'}: 2 left out: 1 .gif (1 of them images by their content: rename them to .jpg or "
        ".png); 1 in the wrong place, such as 'x.png'",
        f"{root / 'val' / 'masks'}: 1 left out: 1 .gif (1 of them images by their content: rename them to .jpg or "
        ".png)",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_description_may_begin_with_a_byte_order_mark(root: Path, encoding: str) -> None:
    classes = [{"name": "größe", "color": "#E2A929"}, {"name": "land", "color": "#8429F6"}]
    (root / "classes.json").write_bytes(json.dumps(description(classes=classes), ensure_ascii=False).encode(encoding))
    assert open_data(f"segmentation:{root}").classes == ["größe", "land"]


@pytest.mark.parametrize("content", [b'{"classes": "caf\xe9"}', b'{"classes": [{"name": "\\ud800", "id": 1}]}'])
def test_names_that_are_no_utf_8_are_refused(root: Path, content: bytes) -> None:
    (root / "classes.json").write_bytes(content)
    with pytest.raises(DataError, match=r"classes\.json: "):
        open_data(f"segmentation:{root}")


def test_masks_leave_no_choice_of_order(root: Path) -> None:
    with pytest.raises(UsageError, match="--class-order text: the description of segmentation:"):
        open_data(f"segmentation:{root}", class_order="text")
