"""The contract of a vectorised view: seeds -> integer parameters -> pixels.

Second in the way of the data, after `addresses`. The parameters of a whole batch are drawn from its seeds on the host
(a few kilobytes, faster there than in a hundred small kernels), the pixels are moved on the images' device. Parameters
and pixels are integers throughout, with fixed-point coordinates, so a candidate looks the same to the bit alone, in a
batch, in another process and on another device. From pixels to pixels only: normalisation belongs to the model's side,
and transforms that are not vectorised to `replay`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

Side = int | Int64[np.ndarray, " n"]
"""A height or width: of all images, or of each one."""
Parameters = Mapping[str, Int64[np.ndarray, " n"] | Int64[Tensor, " n"]]
"""One integer a view under each name, e.g. `{"top": ..., "left": ..., "flip": ...}`."""


class View(ABC):
    """A random transform of images that is a pure function of (pixels, seed).

    Called from any process, by one thread a process. A view holds its settings only: it is picklable, never changes,
    and neither reads nor moves any global random state. It does not write to the images that it is given.

    Example:
        >>> from infer2train.sources.views.crops import PadCropFlip
        >>> images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        >>> PadCropFlip()(images, np.array([7, 8])).shape
        torch.Size([2, 3, 32, 32])
    """

    random: ClassVar[bool] = True
    """Whether the seed matters. Views that are not random are for evaluation."""

    @abstractmethod
    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        """The parameters that these seeds decide, from `addresses.words(seeds, Purpose.PARAMETER, slot=...)`.

        Args:
            seeds: the views' own, in [0, 2^63).
            height: of the images, or of the image of each seed (pixels).
            width: likewise.
        """

    @abstractmethod
    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        """The images under these parameters.

        Args:
            images: pixels on any device.
            parameters: as `draw` gives them; they are taken to the images' device.

        Returns:
            Pixels of the size that `output_size` says, on the same device, laid out in memory as NHWC, which is
            torch's `channels_last`: the network's preferred layout, for nothing.
        """

    @abstractmethod
    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the views of images of this size (pixels).

        Raises:
            ValueError: images of this size have no such view.
        """

    def __call__(self, images: UInt8[Tensor, "n h w c"], seeds: Int64[np.ndarray, " n"]) -> UInt8[Tensor, "n c h2 w2"]:
        """The views of these images under these seeds, as `apply` returns them."""
        return self.apply(images, self.draw(seeds, images.shape[1], images.shape[2]))


def on_device(parameters: Parameters, device: torch.device) -> dict[str, Int64[Tensor, " n"]]:
    """The same parameters as tensors on a device."""
    return {name: torch.as_tensor(values, device=device) for name, values in parameters.items()}
