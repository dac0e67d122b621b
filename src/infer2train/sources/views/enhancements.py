"""Brightness, colour, contrast and sharpness: an image moved away from, or towards, one that lacks the quality.

Pillow's `ImageEnhance` in integers, to the level. With D the image that lacks it and f the factor, a level x becomes

    D + f (x − D),  rounded down, clamped to [0, 255],  f = 1 + thousandths / 1000

so 0 thousandths are the image itself and −1000 would be D.
"""

import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n h w c"]
Amounts = Int64[Tensor, " n"]

_GREY_WEIGHTS = (19595, 38470, 7471)
"""Pillow's (299, 587, 114) / 1000 of red, green and blue, in 1 / 2^16."""


def brightness(images: Images, thousandths: Amounts) -> Images:
    """Away from black."""
    pixels = images.to(torch.int32)
    return _moved(pixels, torch.zeros_like(pixels[:, :1, :1]), thousandths)


def colour(images: Images, thousandths: Amounts) -> Images:
    """Away from grey; grey images stay as they are."""
    pixels = images.to(torch.int32)
    return _moved(pixels, _grey(pixels), thousandths)


def contrast(images: Images, thousandths: Amounts) -> Images:
    """Away from the image's mean grey level, rounded."""
    pixels = images.to(torch.int32)
    count = images.shape[1] * images.shape[2]
    doubled = 2 * _grey(pixels).sum((1, 2, 3), keepdim=True)
    return _moved(pixels, ((doubled + count) // (2 * count)).to(torch.int32), thousandths)


def sharpness(images: Images, thousandths: Amounts) -> Images:
    """Away from the image smoothed by the kernel 1 1 1 / 1 5 1 / 1 1 1 over 13; its border is not smoothed."""
    pixels = images.to(torch.int32)
    tall = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    around = tall[:, :, :-2] + tall[:, :, 1:-1] + tall[:, :, 2:]
    smooth = pixels.clone()
    smooth[:, 1:-1, 1:-1] = (around + 4 * pixels[:, 1:-1, 1:-1] + 6) // 13
    return _moved(pixels, smooth, thousandths)


def _grey(pixels: Int32[Tensor, "n h w c"]) -> Int32[Tensor, "n h w 1"]:
    """Luma, rounded."""
    if pixels.shape[3] == 1:
        return pixels
    red, green, blue = (weight * pixels[..., i] for i, weight in enumerate(_GREY_WEIGHTS))
    return ((red + green + blue + (1 << 15)) >> 16)[..., None]


def _moved(pixels: Int32[Tensor, "n h w c"], dull: Int32[Tensor, "#n #h #w #c"], thousandths: Amounts) -> Images:
    """The pixels, as far from the dull ones as the module says."""
    share = thousandths.to(torch.int32)[:, None, None, None]
    return (pixels + share * (pixels - dull) // 1000).clamp_(0, 255).to(torch.uint8)
