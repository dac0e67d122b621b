"""Posterize, solarize, auto-contrast and equalize: each grey level replaced by another, channel by channel.

Pillow's `ImageOps` in integers, to the level; but where auto-contrast comes to a whole number, Pillow's rounding may
have put it just below and so give the level before.
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n h w c"]
Amounts = Int64[Tensor, " n"]


def posterize(images: Images, dropped: Amounts) -> Images:
    """Levels without their `dropped` lowest bits (at most 7)."""
    bits = dropped.to(torch.uint8)[:, None, None, None]
    return images >> bits << bits


def solarize(images: Images, threshold: Amounts) -> Images:
    """Levels inverted from `threshold` on; from 256 on, none."""
    return torch.where(images >= threshold.to(torch.int16)[:, None, None, None], 255 - images, images)


def auto_contrast(images: Images) -> Images:
    """Levels stretched so that each channel's darkest becomes 0 and its brightest 255; a channel of one level stays."""
    darkest = images.amin((1, 2), keepdim=True).to(torch.int32)
    spread = images.amax((1, 2), keepdim=True) - darkest
    stretched = (images - darkest) * 255 // spread.clamp(min=1)
    return torch.where(spread > 0, stretched, images).to(torch.uint8)


def equalize(images: Images) -> Images:
    """Levels moved so that each channel has about as many pixels of each.

    A level becomes the number of darker pixels, in steps of what makes 255 of those darker than the brightest. A
    channel with fewer than 255 of these stays.
    """
    n, _, _, c = images.shape
    channel = torch.arange(n * c, device=images.device).view(n, 1, 1, c)
    places = (256 * channel + images).flatten()
    counts = torch.zeros(256 * n * c, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, places, torch.ones_like(places)).view(n, c, 256)
    darker = counts.cumsum(2) - counts
    below_brightest = darker.gather(2, images.amax((1, 2)).long()[..., None])
    step = below_brightest // 255
    equal = ((step // 2 + darker) // step.clamp(min=1)).clamp(max=255)
    levels = torch.where(step > 0, equal, torch.arange(256, device=images.device)).to(torch.uint8)
    return levels.flatten().index_select(0, places).view(images.shape)
