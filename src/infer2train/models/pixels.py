"""A network that takes pixels: normalisation is part of the graph that trainer and oracle share.

It stands between the views, which give uint8 where their transform is pure geometry, and the first convolution. It is
never folded into that convolution: zero padding happens after normalisation, so the borders would be wrong.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class Pixels(nn.Module):
    """network((x/255 − mean) / std), in float32.

    Args:
        network: takes normalised images, [b c h w].
        mean: of each channel, of pixels scaled to [0, 1].
        std: likewise.

    Raises:
        ValueError: mean and std are not one number for each channel, or a std is not positive.

    Example:
        >>> model = Pixels(nn.Flatten(), mean=(0.5,), std=(0.25,))
        >>> model(torch.full((1, 1, 1, 2), 255, dtype=torch.uint8))
        tensor([[2., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0) <= 0:
            raise ValueError(
                f"mean and std must be one number for each channel, and std positive: got {mean} and {std}; "
                "for CIFAR-10 use (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225)"
            )
        self.network = network
        # Constants of the data, not weights: they stay out of state_dict and of every record.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels_BCHW: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]) -> Any:
        images_BCHW = (pixels_BCHW.float() / 255 - self.mean) / self.std
        return self.network(images_BCHW)
