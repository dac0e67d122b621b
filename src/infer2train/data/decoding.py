"""Encoded images to RGB pixels: one image at a time, any of the common formats, from bytes that are not trusted.

What is read: JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, JPEG 2000, PPM and, where Pillow has it, AVIF. Formats that
run other programs (EPS) are left out. Called by `once` from several threads, and by `encoded` in whichever process
needs an image; Pillow lets go of the interpreter while it decodes.
"""

import io
import re
from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

VERSION = 3
"""Goes up when the same bytes become other pixels, or are no longer refused and left out, so that images in the cache
are decoded again."""
_HAS_AVIF = find_spec("PIL.AvifImagePlugin") is not None
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", *(("AVIF",) if _HAS_AVIF else ()))
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded: a file of kilobytes can otherwise ask for gigabytes."""

_EXIF = ("exif", "Raw profile type exif")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each orientation upright, as in `PIL.ImageOps.exif_transpose`; 1 is upright."""
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation\s{0,9}(?:=\s{0,9}["']|>)\s{0,9}([1-8])""")
"""As an attribute or an element. XMP is XML, and no parser is let loose on XML that is not trusted."""
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"


class BadImageError(Exception):
    """One image cannot be decoded; why."""


def decode(encoded: bytes | None, image_size: int | None = None, *, square: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of one encoded image.

    Grey becomes three equal channels, 16 bits are rounded to 8, transparency is dropped (the colours under it stay, as
    in torchvision's loader), CMYK is converted without a colour profile, and the camera's orientation is applied (as in
    the `datasets` library): that of EXIF or, where EXIF tells none, of XMP.

    Args:
        encoded: a file's content.
        image_size: height and width in pixels: the shorter side is resized to it (bicubic, antialiased) and the centre
            is cropped. Default: as stored.
        square: without it, nothing is cropped and `image_size` is the most that the shorter side may have: larger
            images are resized, in their proportions.

    Raises:
        BadImageError: there is no image in it, or a broken one, or one of more than 50 million pixels.
    """
    if not encoded:
        raise BadImageError("there are no bytes")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
            upright = _as_rgb(_upright(image))
            return np.asarray(_fit(upright, image_size) if square else _shrunk(upright, image_size))
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # what a broken file makes Pillow's decoders raise is not limited to a few types
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    is_turned_by_pillow = isinstance(image, TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2
    image.load()  # a PNG may have its tags after its pixels
    xmp = _xmp(image)
    # Parsing the tags costs more than decoding a small image, so only where there are any.
    if is_turned_by_pillow or not (xmp or any(name in image.info for name in _EXIF)):
        return image
    orientation = _exif_orientation(image)
    if orientation is None and (found := _XMP_ORIENTATION.search(xmp)):
        orientation = int(found[1])
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _exif_orientation(image: Image.Image) -> Any:
    """What EXIF tells, or None; broken tags beside healthy pixels tell none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # Pillow's parsers of tags raise whatever broken ones make of them, ValueError to struct.error
        return None


def _xmp(image: Image.Image) -> bytes:
    if isinstance(image, JpegImageFile):  # of which Pillow has it in `info` only since version 11
        return b"".join(content for _, content in image.applist if content.startswith(_JPEG_XMP))
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return xmp.encode() if isinstance(xmp, str) else xmp


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_as_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise BadImageError("floating-point pixels have no known range")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _as_8_bits(grey: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """16-bit grey values (which older Pillow holds in 32 bits) to 8 bits: 65535 becomes 255."""
    wide = grey.astype(np.int64)
    if wide.min() < 0 or wide.max() > 0xFFFF:
        raise BadImageError(f"integer pixels must have 16 bits: got {wide.min()} to {wide.max()}")
    return ((wide * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)


def _fit(image: Image.Image, image_size: int | None) -> Image.Image:
    """The centre square, resized: the shorter side resized and the centre cropped, with nothing computed in between."""
    if image_size is None or image.size == (image_size, image_size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _shrunk(image: Image.Image, image_size: int | None) -> Image.Image:
    """The whole image, its shorter side at most `image_size`."""
    side = min(image.size)
    if image_size is None or side <= image_size:
        return image
    width, height = (round(length * image_size / side) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
