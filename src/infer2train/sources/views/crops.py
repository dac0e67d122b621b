"""Random crops with flips: the augmentations of the paper's CIFAR-10 and ImageNet trainings."""

import math

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from infer2train.draws.addresses import Purpose, as_uniform, words
from infer2train.sources.views.elementary import exponential
from infer2train.sources.views.sampling import FRACTION_BITS, ONE, resample
from infer2train.sources.views.view import Parameters, Side, View, on_device


class PadCropFlip(View):
    """Zero-pad each side, crop the original size at a random place, flip left to right half of the time.

    Args:
        padding: zeros on each side (pixels).
        flip: whether to flip at all.

    Raises:
        ValueError: `padding` is negative.

    Example:
        >>> view = PadCropFlip(padding=4)
        >>> sorted(view.draw(np.array([7, 8]), 32, 32))
        ['flip', 'left', 'top']

    Source: He et al., arXiv 1512.03385, section 4.2; the paper's CIFAR-10 trainings.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        if padding < 0:
            raise ValueError(f"padding must be at least 0 pixels: got {padding}; use 4 for 32x32 images")
        self.padding, self.flip = padding, flip

    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        top, left, flip, _ = words(seeds, Purpose.PARAMETER)
        places = 2 * self.padding + 1
        return {
            "top": (top * places) >> 32,
            "left": (left * places) >> 32,
            "flip": flip >> (31 if self.flip else 32),
        }

    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        n, h, w, _ = images.shape
        at = on_device(parameters, images.device)
        padded = pad(images, (0, 0, self.padding, self.padding, self.padding, self.padding))
        # Every crop there is, as a view of the padded memory; only those that are asked for get copied.
        windows = padded.unfold(1, h, 1).unfold(2, w, 1).permute(0, 1, 2, 4, 5, 3)
        crops = windows[torch.arange(n, device=images.device), at["top"], at["left"]]
        return _mirror(crops, at["flip"]).permute(0, 3, 1, 2)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class RandomResizedCropFlip(View):
    """Crop a random part of random shape, resize it to a square, flip left to right half of the time.

    A tenth to a full area and a log-uniform aspect ratio are tried ten times; where none fits the image, the largest
    central crop within the ratios is taken. Bilinear with half-pixel centres, without antialiasing: torchvision's
    `RandomResizedCrop(size, antialias=False)`, but for the random numbers.

    Args:
        size: height and width of the result (pixels).
        scale: least and largest part of the image's area.
        ratio: least and largest width / height of the crop.
        flip: whether to flip at all.

    Raises:
        ValueError: a range is empty or not positive, or `size` is below 1.

    Example:
        >>> RandomResizedCropFlip(224).output_size(256, 256)
        (224, 224)

    Source: Szegedy et al., arXiv 1409.4842, section 6; the paper's ImageNet trainings.
    """

    tries = 10

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel: got {size}; use the network's input size, such as 224")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be a rising range within (0, 1]: got {scale}; use (0.08, 1.0)")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be a rising range of positive numbers: got {ratio}; use (3 / 4, 4 / 3)")
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        height, width = (np.broadcast_to(np.asarray(side, np.int64), seeds.shape) for side in (height, width))
        area, shape, top, left = words(seeds[:, None], Purpose.PARAMETER, slot=np.arange(self.tries + 1))
        flip = area[:, self.tries] >> 31  # the words of the last slot are the flip's alone
        heights, widths = self._shapes(as_uniform(area[:, :-1]), as_uniform(shape[:, :-1]), (height * width)[:, None])
        fits = (heights > 0) & (heights <= height[:, None]) & (widths > 0) & (widths <= width[:, None])
        chosen = np.arange(len(seeds)), fits.argmax(axis=1)
        some = fits.any(axis=1)
        central_height, central_width = self._central(height, width)
        crop_height = np.where(some, heights[chosen], central_height)
        crop_width = np.where(some, widths[chosen], central_width)
        return {
            "top": np.where(some, (top[chosen] * (height - crop_height + 1)) >> 32, (height - central_height) // 2),
            "left": np.where(some, (left[chosen] * (width - crop_width + 1)) >> 32, (width - central_width) // 2),
            "height": crop_height,
            "width": crop_width,
            "flip": flip if self.flip else np.zeros_like(flip),
        }

    def _shapes(self, area: np.ndarray, shape: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Heights and widths of crops for uniform numbers that decide their area and their aspect ratio."""
        (least, most), (narrow, wide) = self.scale, self.ratio
        areas: Float64[np.ndarray, "n tries"] = pixels * (least + area.astype(np.float64) * (most - least))
        exponents = (shape.astype(np.float64) - 0.5) * math.log(wide / narrow)
        ratios = math.sqrt(narrow * wide) * exponential(exponents)
        return np.rint(np.sqrt(areas / ratios)).astype(np.int64), np.rint(np.sqrt(areas * ratios)).astype(np.int64)

    def _central(
        self, height: Int64[np.ndarray, " n"], width: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Height and width of the largest crops whose aspect ratio is allowed."""
        narrow, wide = self.ratio
        lower = np.rint(width / narrow).astype(np.int64).clip(1, height)
        slimmer = np.rint(height * wide).astype(np.int64).clip(1, width)
        return np.where(width < narrow * height, lower, height), np.where(width > wide * height, slimmer, width)

    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        at = on_device(parameters, images.device)
        rows = _centres(at["top"], at["height"], self.size)
        columns = _centres(at["left"], at["width"], self.size)
        columns = torch.where(at["flip"].bool()[:, None], columns.flip(1), columns)
        return resample(images, rows, columns).permute(0, 3, 1, 2)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size


def _mirror(images: UInt8[Tensor, "n h w c"], flip: Int64[Tensor, " n"]) -> UInt8[Tensor, "n h w c"]:
    """Flip those images left to right whose `flip` is 1.

    Flipping all and copying whole images is several times faster than choosing pixel by pixel, and asks no device how
    many there are to flip.
    """
    n = len(images)
    both = torch.cat([images, images.flip(2)]).view(2 * n, -1)
    return both.index_select(0, torch.arange(n, device=images.device) + n * flip).view(images.shape)


def _centres(start: Int64[Tensor, " n"], length: Int64[Tensor, " n"], size: int) -> Int64[Tensor, "n size"]:
    """Where the centres of `size` equal parts of [start, start + length) lie, clamped to its outermost pixels."""
    odd = 2 * torch.arange(size, device=start.device) + 1
    along = (odd * (length[:, None] * ONE) + size) // (2 * size) - ONE // 2
    last = (length[:, None] - 1) * ONE
    return (start[:, None] << FRACTION_BITS) + along.clamp(min=0).minimum(last)
