"""Image files as 8-bit RGB, upright; files of more bits are refused in every format."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from search.data.image_files import decode, opened, upright, upright_size
from spaces.errors import DataError

HEIGHT, WIDTH = 6, 4
UPRIGHT = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3) * 3
# How a camera stores what is upright, by EXIF orientation (EXIF 2.32, 4.6.4).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x112] = orientation
    return found


def stored(kind: str, pixels: np.ndarray, orientation: int) -> io.BytesIO:
    file = io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, exif=exif(orientation), **more)
    return file


class TestOrientation:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", STORED)
    def test_images_are_turned_upright_once(self, kind: str, orientation: int) -> None:
        file = stored(kind, STORED[orientation], orientation)
        assert np.array_equal(np.asarray(decode(file, "x")), UPRIGHT)
        with opened(file, "x") as image:
            assert upright_size(image) == (WIDTH, HEIGHT)

    def test_jpeg_too(self) -> None:
        pixels = np.zeros((32, 48, 3), np.uint8)
        pixels[:16] = 200
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif(6))
        found = np.asarray(decode(file, "x")).astype(int)
        assert found.shape == (48, 32, 3)
        assert found[:, 20:].min() > 150 > 50 > found[:, :12].max()

    def test_a_tiff_of_several_pages_and_compression(self) -> None:
        file = io.BytesIO()
        first, second = (Image.fromarray(np.ascontiguousarray(STORED[6])) for _ in range(2))
        first.save(file, "TIFF", tiffinfo={274: 6}, compression="tiff_lzw", save_all=True, append_images=[second])
        assert np.array_equal(np.asarray(decode(file, "x")), UPRIGHT)

    @pytest.mark.parametrize("orientation", [0, 9, 300])
    def test_an_orientation_that_is_none_turns_nothing(self, orientation: int) -> None:
        assert np.array_equal(np.asarray(decode(stored("PNG", UPRIGHT, orientation), "x")), UPRIGHT)

    def test_broken_exif_turns_nothing(self) -> None:
        file = io.BytesIO()
        Image.fromarray(UPRIGHT).save(file, "PNG", exif=b"Exif\0\0no header at all")
        assert np.array_equal(np.asarray(decode(file, "x")), UPRIGHT)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(colour: int, channels: int) -> bytes:
    rows = (b"\0" + b"\x0f\xf0" * channels * 8) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(channels: int, order: str = "<", extra: int | None = None) -> bytes:
    """An uncompressed TIFF of 2×2 pixels, written by hand since Pillow writes none of several deep channels."""
    pixels = b"\x0f\xf0" * (4 * channels)
    shorts = {256: 2, 257: 2, 259: 1, 262: 2 if channels > 1 else 1, 277: channels, 278: 2}
    if extra is not None:
        shorts[338] = extra
    after = 8 + 2 + 12 * (len(shorts) + 3) + 4  # where the bits of each channel stand, then the pixels
    entries = [(tag, 3, 1, struct.pack(order + "HH", value, 0)) for tag, value in shorts.items()]
    bits = struct.pack(order + "I", after) if channels > 2 else struct.pack(order + "HH", 16, 0)
    entries.append((258, 3, channels, bits))
    entries.append((273, 4, 1, struct.pack(order + "I", after + 2 * channels)))
    entries.append((279, 4, 1, struct.pack(order + "I", len(pixels))))
    listed = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + listed + bytes(4) + struct.pack(f"{order}{channels}H", *[16] * channels) + pixels


def deep_jpeg2000() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file, "JPEG2000")
    content = bytearray(file.getvalue())
    content[content.find(b"\xff\x4f\xff\x51") + 4 + 38] = 11  # 12 bits, in the SIZ segment
    return bytes(content)


def deep_sgi(compression: int) -> bytes:
    header = struct.pack(">HBBHHHH", 474, compression, 2, 3, 4, 4, 3)
    return header.ljust(512, b"\0") + bytes(4 * 4 * 3 * 2 + 200)


class TestBits:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(deep_png(0, 1), id="png grey"),
            pytest.param(deep_png(2, 3), id="png rgb"),
            pytest.param(deep_png(4, 2), id="png grey and alpha"),
            pytest.param(deep_png(6, 4), id="png rgba"),
            pytest.param(deep_tiff(3), id="tiff rgb"),
            pytest.param(deep_tiff(3, order=">"), id="tiff rgb, big-endian"),
            pytest.param(deep_tiff(4, extra=2), id="tiff rgba"),
            pytest.param(deep_tiff(4, extra=0), id="tiff rgb and near infrared"),
            pytest.param(deep_tiff(1), id="tiff grey"),
            pytest.param(b"P6 2 2 65535\n" + bytes(24), id="ppm"),
            pytest.param(b"P6 2 2 4095\n" + bytes(24), id="ppm of 12 bits"),
            pytest.param(b"P3 1 1 4095\n1 2 3\n", id="plain ppm"),
            pytest.param(b"P5 2 2 4095\n" + bytes(8), id="pgm"),
            pytest.param(deep_sgi(0), id="sgi"),
            pytest.param(deep_sgi(1), id="sgi, compressed"),
        ],
    )
    def test_more_than_8_a_channel_are_refused(self, content: bytes) -> None:
        with pytest.raises(DataError, match=r"^x: has more than 8 bits a channel; convert it to 8 bits$"):
            decode(io.BytesIO(content), "x")

    @pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
    def test_jpeg_2000_of_12_bits_is_refused(self) -> None:
        with pytest.raises(DataError, match="more than 8 bits a channel"):
            decode(io.BytesIO(deep_jpeg2000()), "x")

    @pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG2000", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"])
    def test_8_bits_are_read(self, kind: str) -> None:
        file = io.BytesIO()
        Image.fromarray(UPRIGHT).save(file, kind)
        assert decode(file, "x").size == (WIDTH, HEIGHT)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
    def test_other_channels_become_rgb(self, mode: str) -> None:
        file = io.BytesIO()
        Image.fromarray(UPRIGHT).convert(mode).save(file, "TIFF")
        assert decode(file, "x").mode == "RGB"

    def test_a_pixel_of_16_bits_is_not_a_channel_of_16(self) -> None:
        size = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0)
        bmp = b"BM" + struct.pack("<IHHI", 62, 0, 0, 54) + size + bytes(8)
        assert decode(io.BytesIO(bmp), "x").size == (2, 2)

    def test_a_white_below_255_is_white(self) -> None:
        assert decode(io.BytesIO(b"P6 1 1 100\n" + bytes([100] * 3)), "x").getpixel((0, 0)) == (255, 255, 255)


def test_a_file_is_read_by_its_content_whatever_its_suffix(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", "TIFF")
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png", "a.png")), UPRIGHT)


def test_a_text_named_like_an_image_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image\n")
    with pytest.raises(DataError, match=r"^a\.jpg: not a readable image \(.*\); replace or remove it$"):
        decode(tmp_path / "a.jpg", "a.jpg")


@pytest.mark.parametrize("place", range(1, 9))
def test_a_malformed_tag_does_not_keep_an_image_from_being_turned(place: int, tmp_path: Path) -> None:
    image, exif = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)), Image.Exif()
    exif[0x112] = place
    image.save(tmp_path / "good.png", exif=exif)
    tags = struct.pack("<HHII", 0x112, 3, 1, place) + struct.pack(
        "<HHI4s", 0x11A, 2, 4, b"abc"
    )  # a text as resolution
    image.save(tmp_path / "bad.png", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + bytes(4))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "good.png")))
    for name in ("good.png", "bad.png"):
        with opened(tmp_path / name, name) as found:
            assert np.array_equal(np.asarray(upright(found)), expected)
