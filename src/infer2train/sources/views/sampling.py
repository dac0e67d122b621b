"""Bilinear sampling at fixed-point coordinates.

Integer arithmetic gives the same pixels on every device and in every batch; 11 fraction bits keep a pixel within one
grey level of the exact value. `resample` is for axis-aligned transforms (crop, resize, flip), which copy whole lines of
pixels and are several times faster than `sample`, which is for all others. No antialiasing: shrinking by more than two
skips pixels, as torchvision's `antialias=False` does.

Coordinates are those of pixel centres: pixel i of an axis lies at i << FRACTION_BITS.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int32, Int64, Integer, UInt8
from torch import Tensor

FRACTION_BITS = 11
ONE = 1 << FRACTION_BITS
_HALF = 1 << (2 * FRACTION_BITS - 1)
_CACHE_ELEMENTS = 1 << 18
"""Output elements made at a time on a CPU: their int32 intermediates then stay in its cache."""


def resample(
    images: UInt8[Tensor, "n h w c"], rows: Int64[Tensor, "n h2"], columns: Int64[Tensor, "n w2"]
) -> UInt8[Tensor, "n h2 w2 c"]:
    """Pixel (i, j) of the result is the image at (rows[i], columns[j]).

    Args:
        images: pixels.
        rows: fixed-point coordinates in [0, h - 1].
        columns: fixed-point coordinates in [0, w - 1].
    """
    result = images.new_empty((len(images), rows.shape[1], columns.shape[1], images.shape[3]))
    for part in _chunks(result):
        left, right = _window(columns[part], images.shape[2])
        tall = _lines(images[part, :, left:right], rows[part])
        turned = _lines(tall.transpose(1, 2), columns[part] - (left << FRACTION_BITS))
        result[part] = ((turned + _HALF) >> (2 * FRACTION_BITS)).transpose(1, 2)
    return result


def _window(columns: Int64[Tensor, "n w2"], w: int) -> tuple[int, int]:
    """Where the pixels begin and end that these columns see: a crop of a photograph leaves much of it alone.

    All pixels on a device that would have to be waited for.
    """
    if columns.device.type != "cpu":
        return 0, w
    left, right = (int(column) >> FRACTION_BITS for column in columns.aminmax())
    return left, min(right + 2, w)


def _lines(images: Integer[Tensor, "n h w c"], rows: Int64[Tensor, "n h2"]) -> Integer[Tensor, "n h2 w c"]:
    """Blend the two lines around each row coordinate; the result is scaled by ONE."""
    n, h, w, c = images.shape
    above = rows >> FRACTION_BITS
    below = (above + 1).clamp(max=h - 1)
    weight = (rows & (ONE - 1)).to(torch.int32)[:, :, None]
    first = torch.arange(n, device=images.device)[:, None] * h
    lines = images.reshape(n * h, w * c)

    def at(row: Tensor) -> Tensor:
        return lines.index_select(0, (first + row).flatten()).view(n, rows.shape[1], w * c).to(torch.int32)

    low = at(above)
    return (at(below).sub_(low).mul_(weight).add_(low << FRACTION_BITS)).view(n, rows.shape[1], w, c)


def sample(
    images: UInt8[Tensor, "n h w c"], rows: Int64[Tensor, "n h2 w2"], columns: Int64[Tensor, "n h2 w2"]
) -> UInt8[Tensor, "n h2 w2 c"]:
    """Pixel (i, j) of the result is the image at (rows[i, j], columns[i, j]), coordinates clamped to the image.

    Args:
        images: pixels.
        rows: fixed-point coordinates.
        columns: fixed-point coordinates.
    """
    result = images.new_empty((*rows.shape, images.shape[3]))
    for part in _chunks(result):
        result[part] = (_blended(images[part], rows[part], columns[part]) + _HALF) >> (2 * FRACTION_BITS)
    return result


def _blended(
    images: UInt8[Tensor, "n h w c"], rows: Int64[Tensor, "n h2 w2"], columns: Int64[Tensor, "n h2 w2"]
) -> Int32[Tensor, "n h2 w2 c"]:
    """Blend the four pixels around each coordinate; the result is scaled by ONE squared."""
    n, h, w, c = images.shape
    rows, columns = rows.clamp(0, (h - 1) * ONE), columns.clamp(0, (w - 1) * ONE)
    top, left = rows >> FRACTION_BITS, columns >> FRACTION_BITS
    bottom, right = (top + 1).clamp(max=h - 1), (left + 1).clamp(max=w - 1)
    down = (rows & (ONE - 1)).to(torch.int32)[..., None]
    across = (columns & (ONE - 1)).to(torch.int32)[..., None]
    first = torch.arange(n, device=images.device)[:, None, None] * h
    pixels = images.reshape(n * h * w, c)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return pixels.index_select(0, ((first + row) * w + column).flatten()).view(*rows.shape, c).to(torch.int32)

    def between(row: Tensor) -> Tensor:
        low = at(row, left)
        return at(row, right).sub_(low).mul_(across).add_(low << FRACTION_BITS)

    high = between(top)
    return between(bottom).sub_(high).mul_(down).add_(high << FRACTION_BITS)


def _chunks(result: UInt8[Tensor, "n h2 w2 c"]) -> Iterator[slice]:
    """Images to make at a time."""
    on_cpu = result.device.type == "cpu"
    step = max(1, _CACHE_ELEMENTS // result[0].numel()) if on_cpu else len(result)
    return (slice(start, start + step) for start in range(0, len(result), step))
