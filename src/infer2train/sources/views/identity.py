"""Views without randomness: as it is, and the central crop on which ImageNet networks are evaluated."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from infer2train.sources.views.sampling import ONE, resample
from infer2train.sources.views.view import Parameters, Side, View


class Identity(View):
    """The image as it is: no pixel is touched or copied.

    Example:
        >>> Identity()(torch.zeros(1, 8, 8, 1, dtype=torch.uint8), np.array([0])).shape
        torch.Size([1, 1, 8, 8])
    """

    random: ClassVar[bool] = False

    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        return {}

    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        return images.permute(0, 3, 1, 2)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class EvaluationCrop(View):
    """The shorter side resized to 8/7 of `size` (256 for 224), the central square of `size` cropped; bilinear.

    Without antialiasing, unlike torchvision's default: images far larger than `size` are better stored smaller first.

    Args:
        size: height and width of the result (pixels).

    Raises:
        ValueError: `size` is below 1.

    Example:
        >>> EvaluationCrop(224).output_size(256, 320)
        (224, 224)

    Source: the evaluation of Goyal et al., arXiv 1706.02677, which the paper's ImageNet trainings follow.
    """

    random: ClassVar[bool] = False

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel: got {size}; use the network's input size, such as 224")
        self.size = size

    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        return {}

    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        n, h, w, _ = images.shape
        rows = self._centres(h, min(h, w), images.device).expand(n, -1)
        columns = self._centres(w, min(h, w), images.device).expand(n, -1)
        return resample(images, rows, columns).permute(0, 3, 1, 2)

    def _centres(self, side: int, shorter: int, device: torch.device) -> Int64[Tensor, " size"]:
        """Coordinates of the result's pixels along one side of the image."""
        resized = max(self.size, self.size * 8 // 7)
        scaled = max(self.size, side * resized // shorter)
        first = round((scaled - self.size) / 2)
        odd = 2 * (torch.arange(self.size, device=device) + first) + 1
        along = (odd * (shorter * ONE) + resized) // (2 * resized) - ONE // 2
        return along.clamp(0, (side - 1) * ONE)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size
