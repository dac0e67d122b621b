"""Shears, translations and rotations to the nearest pixel, black where there is no image.

Pillow's `Image.transform` and `Image.rotate` with their default filter, `NEAREST`: a pixel shows the one in which its
centre's source lies, so grey levels are moved, never mixed. `affine` has the rotations that interpolate.
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n h w c"]
Amounts = Int64[Tensor, " n"]

ANGLE_BITS = 32
"""Fraction bits of sine and cosine."""

_PILLOW_BITS = 16
"""Fraction bits of the coordinates of a rotation, as Pillow has them: they decide what is nearest at 45 degrees."""


def shear_x(images: Images, thousandths: Amounts) -> Images:
    """Each row's source is moved to the right by `thousandths` / 1000 of its distance from the image's upper edge."""
    _, h, w, _ = images.shape
    rows = torch.arange(h, device=images.device)[:, None]
    return _nearest(images, rows, _sheared(w, rows, thousandths))


def shear_y(images: Images, thousandths: Amounts) -> Images:
    """Each column's source is moved down by `thousandths` / 1000 of its distance from the image's left edge."""
    _, h, w, _ = images.shape
    columns = torch.arange(w, device=images.device)
    return _nearest(images, _sheared(h, columns[:, None], thousandths).transpose(1, 2), columns)


def translate_x(images: Images, pixels: Amounts) -> Images:
    """Each pixel's source lies `pixels` to its right."""
    _, h, w, _ = images.shape
    rows = torch.arange(h, device=images.device)[:, None]
    return _nearest(images, rows, torch.arange(w, device=images.device) + pixels[:, None, None])


def translate_y(images: Images, pixels: Amounts) -> Images:
    """Each pixel's source lies `pixels` below it."""
    _, h, w, _ = images.shape
    rows = torch.arange(h, device=images.device)[:, None] + pixels[:, None, None]
    return _nearest(images, rows, torch.arange(w, device=images.device))


def rotate(images: Images, sine: Amounts, cosine: Amounts) -> Images:
    """The image turned about its centre, anticlockwise for a positive angle.

    Args:
        images: pixels.
        sine: of the angle, times 2^ANGLE_BITS.
        cosine: likewise.
    """
    _, h, w, _ = images.shape
    sine, cosine = sine[:, None, None], cosine[:, None, None]
    # The source of the first pixel's centre, then steps to the next pixels: each is rounded by itself.
    top = _rounded((h << ANGLE_BITS) + sine * (1 - w) + cosine * (1 - h), halved=True)
    left = _rounded((w << ANGLE_BITS) + cosine * (1 - w) - sine * (1 - h), halved=True)
    sine, cosine = _rounded(sine), _rounded(cosine)
    y, x = torch.arange(h, device=images.device)[:, None], torch.arange(w, device=images.device)
    rows = (top + sine * x + cosine * y) >> _PILLOW_BITS
    columns = (left + cosine * x - sine * y) >> _PILLOW_BITS
    return _nearest(images, rows, columns)


def _rounded(exact: Int64[Tensor, "n 1 1"], halved: bool = False) -> Int64[Tensor, "n 1 1"]:
    """A number of ANGLE_BITS, or its half, in _PILLOW_BITS."""
    fewer = ANGLE_BITS - _PILLOW_BITS + halved
    return (exact + (1 << (fewer - 1))) >> fewer


def _sheared(length: int, across: Int64[Tensor, "across 1"], thousandths: Amounts) -> Int64[Tensor, "n across along"]:
    """Sources along lines of `length` pixels, moved in proportion to how far `across` each line lies."""
    along = 2 * torch.arange(length, device=across.device) + 1  # twice a pixel centre's distance from the edge is whole
    return (1000 * along + thousandths[:, None, None] * (2 * across + 1)) // 2000


def _nearest(images: Images, rows: Int64[Tensor, "*#nhw"], columns: Int64[Tensor, "*#nhw"]) -> Images:
    """Pixel (i, j) of the result is the image's at (rows[i, j], columns[i, j]), black where there is none."""
    n, h, w, c = images.shape
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    first = torch.arange(n, device=images.device)[:, None, None] * h
    place = (first + rows.clamp(0, h - 1)) * w + columns.clamp(0, w - 1)
    seen = images.reshape(n * h * w, c).index_select(0, place.flatten()).view(images.shape)
    return seen * inside[..., None]
