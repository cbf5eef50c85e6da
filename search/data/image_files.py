"""Reading image files: upright, as 8-bit RGB, or not at all."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from spaces.errors import DataError, PrunefrontError

SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
# By orientation. `ImageOps.exif_transpose` does the same, but writes the other tags anew and fails on malformed ones.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEADER = 2**16  # bytes in which the header of a JPEG 2000 or AVIF file is looked for
_DEEP_RAW_MODES = (";16B", ";16L", ";16N")  # of Pillow's decoders; ";16" alone is a pixel of 16 bits, as in BMP

Content = Path | io.BytesIO


@contextmanager
def opened(content: Content, where: str) -> Iterator[Image.Image]:
    """Open an image file; only its header is read.

    Args:
        content: the file, or its bytes.
        where: names it in errors.

    Raises:
        DataError: it is broken, also if that shows only inside the context.
    """
    try:
        with Image.open(content) as image:
            yield image
    except PrunefrontError:
        raise
    except Exception as error:  # Pillow's readers have no base class for what a broken file makes them raise
        reason = " ".join(str(error).split()) if not isinstance(content, io.BytesIO) else ""
        reason = reason or type(error).__name__
        raise DataError(f"{where}: not a readable image ({reason}); replace or remove it") from None


def decode(content: Content, where: str) -> Image.Image:
    """Decode an image file as RGB, turned upright by its EXIF orientation.

    Args:
        content: the file, or its bytes.
        where: names it in errors.

    Raises:
        DataError: it is broken, or has more than 8 bits per channel.
    """
    with opened(content, where) as image:
        if image.mode.startswith(("I", "F")) or is_deep(image):  # Pillow would clip them, or drop their low bits
            raise DataError(f"{where}: has more than 8 bits a channel; convert it to 8 bits")
        return upright(image).convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened file of several channels has more than 8 bits in one. Pillow reduces them unasked.

    Pillow's mode says it for files of one channel: `I`, `I;16` or `F`.
    """
    if isinstance(image, TiffImageFile):
        return any(bits > 8 for bits in image.tag_v2.get(BITSPERSAMPLE, ()))
    if image.format in ("JPEG2000", "AVIF"):
        header = _header(image)
        return _avif_is_deep(header) if image.format == "AVIF" else _jpeg2000_bits(header) > 8
    for codec, _, _, arguments in getattr(image, "tile", ()):
        values = arguments if isinstance(arguments, tuple) else (arguments,)
        raw = next((value for value in values if isinstance(value, str)), "")
        if codec == "SGI16" or raw.endswith(_DEEP_RAW_MODES):
            return True
        if codec in ("ppm", "ppm_plain") and isinstance(values[-1], int) and values[-1] > 255:  # its white
            return True
    return False


def stored_range(image: Image.Image) -> tuple[int | None, bool]:
    """Return how Pillow changes the values of an opened grey file; palette indices stay as they are.

    Returns:
        The highest value that the file can hold, if Pillow stretches it to the highest of its mode, else None; and
        whether Pillow inverts the values.
    """
    for codec, _, _, arguments in getattr(image, "tile", ()):
        values = arguments if isinstance(arguments, tuple) else (arguments,)
        raw = next((value for value in values if isinstance(value, str)), "")
        kind, _, detail = raw.partition(";")
        if codec in ("ppm", "ppm_plain") and isinstance(values[-1], int) and image.mode != "1":
            return (None if values[-1] in (255, 65535) else values[-1]), False
        if kind in ("L", "1", "I") and "I" in detail:
            return None, True
        if kind == "L" and detail[:1] in ("2", "4"):
            return 2 ** int(detail[0]) - 1, False
    return None, False


def upright(image: Image.Image) -> Image.Image:
    """Load an image and turn it as its EXIF orientation says. Pillow turns TIFF itself, and then drops the tag."""
    image.load()
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an opened image as `upright` gives it, without loading its pixels."""
    width, height = image.size
    if isinstance(image, TiffImageFile):  # whose size Pillow has turned already
        width, height = int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])
    return (height, width) if orientation(image) in SIDEWAYS else (width, height)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 if there is none, or none that can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of a malformed tag, whatever it is; viewers show such files as they are
        return 1
    return found if found in range(1, 9) else 1


def _header(image: Image.Image) -> bytes:
    file = getattr(image, "fp", None)
    if file is None:
        return b""
    place = file.tell()
    file.seek(0)
    header: bytes = file.read(_HEADER)
    file.seek(place)
    return header


def _jpeg2000_bits(header: bytes) -> int:
    """Return the bits of the deepest component, from the SIZ marker segment (ITU-T T.800, A.5.1)."""
    start = header.find(b"\xff\x4f\xff\x51") + 4
    if start < 4 or len(header) < start + 38:
        return 0
    (count,) = struct.unpack_from(">H", header, start + 36)
    return max(((one & 0x7F) + 1 for one in header[start + 38 : start + 38 + 3 * count : 3]), default=0)


def _avif_is_deep(header: bytes) -> bool:
    """Return the bit high_bitdepth of the AV1 codec configuration (AV1-ISOBMFF, 2.3.3)."""
    start = header.find(b"av1C")
    return 0 <= start < len(header) - 6 and bool(header[start + 6] & 0x40)
