"""Encoded images to RGB pixels: one image at a time, any of the common formats, from bytes that are not trusted.

What is read: JPEG, PNG, WebP, BMP, GIF (first frame), TIFF, JPEG 2000 and PPM. Formats that run other programs (EPS)
are left out. Called by `once` from several threads, and by `encoded` in whichever process needs an image; Pillow lets
go of the interpreter while it decodes.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM")
MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded: a file of kilobytes can otherwise ask for gigabytes."""


class BadImageError(Exception):
    """One image cannot be decoded; why."""


def decode(encoded: bytes | None, image_size: int | None = None, *, square: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of one encoded image.

    Grey becomes three equal channels, 16 bits are rounded to 8, transparency is dropped (the colours under it stay, as
    in torchvision's loader), CMYK is converted without a colour profile, and the camera's orientation is applied (as in
    the `datasets` library).

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
    # Parsing the tags costs more than decoding a small image, so only where there are any.
    return ImageOps.exif_transpose(image) if "exif" in image.info else image


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
