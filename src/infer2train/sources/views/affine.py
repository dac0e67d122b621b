"""Small shifts and rotations, for digits and other images that a flip would falsify."""

import math

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from infer2train.draws.addresses import Purpose, as_uniform, words
from infer2train.sources.views.elementary import sine_and_cosine
from infer2train.sources.views.sampling import ONE, sample
from infer2train.sources.views.view import Parameters, Side, View, on_device

_MATRIX_BITS = 20
"""Fraction bits of sine and cosine: enough for a thousand pixels from the centre."""


class ShiftRotate(View):
    """Rotate about the image's centre and shift, both by uniform amounts; bilinear, zeros from outside.

    Output pixel p shows the image at R(-angle) (p - centre - shift) + centre.

    Args:
        shift: the most in each direction (pixels).
        rotation: the most either way (degrees, at most 180).

    Raises:
        ValueError: an amount is negative, or a rotation is above 180 degrees.

    Example:
        >>> ShiftRotate(shift=1.0, rotation=10.0).output_size(8, 8)
        (8, 8)
    """

    def __init__(self, shift: float = 1.0, rotation: float = 10.0) -> None:
        if not 0 <= shift < math.inf:
            raise ValueError(f"shift must be at least 0 pixels: got {shift}; use 1.0 for 8x8 images")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must be between 0 and 180 degrees: got {rotation}; use 10.0")
        self.shift, self.rotation = shift, rotation

    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        four_words = words(seeds, Purpose.PARAMETER)
        angle, down, right, _ = (2.0 * as_uniform(word).astype(np.float64) - 1.0 for word in four_words)
        sine, cosine = sine_and_cosine(angle * math.radians(self.rotation))
        amounts = {
            "sine": sine * (1 << _MATRIX_BITS),
            "cosine": cosine * (1 << _MATRIX_BITS),
            "down": down * (self.shift * ONE),
            "right": right * (self.shift * ONE),
        }
        return {name: np.rint(amount).astype(np.int64) for name, amount in amounts.items()}

    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        _, h, w, _ = images.shape
        at = {name: value[:, None, None] for name, value in on_device(parameters, images.device).items()}
        # Twice the distance from the centre is whole, whatever the image's size, and a shift of half a pixel too.
        y = (2 * torch.arange(h, device=images.device) - (h - 1))[:, None] * ONE - 2 * at["down"]
        x = (2 * torch.arange(w, device=images.device) - (w - 1)) * ONE - 2 * at["right"]
        rows = _scaled(at["cosine"] * y - at["sine"] * x) + (h - 1) * ONE // 2
        columns = _scaled(at["cosine"] * x + at["sine"] * y) + (w - 1) * ONE // 2
        # One pixel of zeros all around is all that bilinear sampling can see of the outside.
        return sample(pad(images, (0, 0, 1, 1, 1, 1)), rows + ONE, columns + ONE).permute(0, 3, 1, 2)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


def _scaled(doubled: Int64[Tensor, "n h w"]) -> Int64[Tensor, "n h w"]:
    """Half of a product of a matrix entry and a coordinate, as a coordinate, rounded."""
    return (doubled + (1 << _MATRIX_BITS)) >> (_MATRIX_BITS + 1)
