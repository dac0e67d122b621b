"""TrivialAugment: one operation, drawn at random with a random strength, and nothing to tune."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from infer2train.draws.addresses import Purpose, words
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.curves import auto_contrast, equalize, posterize, solarize
from infer2train.sources.views.elementary import sine_and_cosine
from infer2train.sources.views.enhancements import brightness, colour, contrast, sharpness
from infer2train.sources.views.view import Parameters, Side, View, on_device
from infer2train.sources.views.warps import ANGLE_BITS, rotate, shear_x, shear_y, translate_x, translate_y

Images = UInt8[Tensor, "n h w c"]
Amounts = Int64[Tensor, " n"]
Operation = Callable[[Images, Mapping[str, Amounts]], Images]

STRENGTHS = 31
"""0 to 30. At 0 all but auto-contrast and equalize, which have no strength, are the identity."""

_DEGREES = 4.5
"""Of a rotation, for each unit of strength: 135 at most."""

OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, at: images,
    "shear-x": lambda images, at: shear_x(images, _thousandths(at)),
    "shear-y": lambda images, at: shear_y(images, _thousandths(at)),
    "translate-x": lambda images, at: translate_x(images, _pixels(at)),
    "translate-y": lambda images, at: translate_y(images, _pixels(at)),
    "rotate": lambda images, at: rotate(images, at["sine"], at["cosine"]),
    "brightness": lambda images, at: brightness(images, _thousandths(at)),
    "colour": lambda images, at: colour(images, _thousandths(at)),
    "contrast": lambda images, at: contrast(images, _thousandths(at)),
    "sharpness": lambda images, at: sharpness(images, _thousandths(at)),
    "posterize": lambda images, at: posterize(images, _dropped_bits(at)),
    "solarize": lambda images, at: solarize(images, _threshold(at)),
    "auto-contrast": lambda images, at: auto_contrast(images),
    "equalize": lambda images, at: equalize(images),
}
"""What may happen to an image, as often each. A parameter `operation` is a place in this order."""


class TrivialAugment(View):
    """`PadCropFlip`, then one operation of `OPERATIONS` with a strength of 0 to 30 and, where it has one, a sign.

    The paper's wide space as torchvision's `TrivialAugmentWide` has it: shears to 0.99, translations to 32 pixels,
    rotations to 135 degrees, brightness, colour, contrast and sharpness by a factor of 1 ± 0.99, posterize to 2 bits.
    Geometry shows the nearest pixel, without interpolation, and black from outside, as there. One deviation: solarize
    inverts from level 256 at strength 0, as in the authors' code, where torchvision begins at 255 and so inverts white.
    As in torchvision's recipes the operation sees the crop with its padding; the authors operate first and crop then.

    Args:
        padding: zeros on each side (pixels).
        flip: whether to flip at all.

    Raises:
        ValueError: `padding` is negative; or, when applied, the images have neither one channel nor three.

    Example:
        >>> view = TrivialAugment(padding=4)
        >>> sorted(view.draw(np.array([7, 8]), 32, 32))
        ['cosine', 'flip', 'left', 'operation', 'sine', 'strength', 'top']

    Source: Müller and Hutter, arXiv 2103.10158, algorithm 1; magnitudes: torchvision and the authors' code.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.crop = PadCropFlip(padding, flip)

    def draw(self, seeds: Int64[np.ndarray, " n"], height: Side, width: Side) -> dict[str, Int64[np.ndarray, " n"]]:
        operation, strength, sign, _ = words(seeds, Purpose.PARAMETER, slot=1)  # slot 0 is the crop's
        signed = ((strength * STRENGTHS) >> 32) * (1 - 2 * (sign >> 31))
        sine, cosine = sine_and_cosine(signed * math.radians(_DEGREES))
        return {
            **self.crop.draw(seeds, height, width),
            "operation": (operation * len(OPERATIONS)) >> 32,
            "strength": signed,
            "sine": np.rint(sine * (1 << ANGLE_BITS)).astype(np.int64),
            "cosine": np.rint(cosine * (1 << ANGLE_BITS)).astype(np.int64),
        }

    def apply(self, images: UInt8[Tensor, "n h w c"], parameters: Parameters) -> UInt8[Tensor, "n c h2 w2"]:
        if images.shape[3] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels: got {images.shape[3]}; use pad-crop-flip for others")
        at = on_device(parameters, images.device)
        views = self.crop.apply(images, at).permute(0, 2, 3, 1)
        for number, operation in enumerate(OPERATIONS.values()):
            views = _operated(views, at, at["operation"] == number, operation)
        return views.permute(0, 3, 1, 2)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.crop.output_size(height, width)


def _operated(images: Images, at: dict[str, Amounts], chosen: Bool[Tensor, " n"], operation: Operation) -> Images:
    """The images, those that are chosen after the operation; they may be written to.

    On a CPU only those are computed. To ask a GPU how many there are would stall it, so all are computed there.
    """
    if images.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], operation(images, at), images)
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        images[rows] = operation(images[rows], {name: values[rows] for name, values in at.items()})
    return images


def _thousandths(at: Mapping[str, Amounts]) -> Amounts:
    """Of a shear, or beyond 1 of an enhancement's factor: to 0.99 either way."""
    return 33 * at["strength"]


def _pixels(at: Mapping[str, Amounts]) -> Amounts:
    """Of a translation: to 32 either way, rounded towards none."""
    return torch.div(32 * at["strength"], STRENGTHS - 1, rounding_mode="trunc")


def _dropped_bits(at: Mapping[str, Amounts]) -> Amounts:
    """Of 8: to 6, rounded."""
    return (at["strength"].abs() + 2) // 5


def _threshold(at: Mapping[str, Amounts]) -> Amounts:
    """From 256 down to 0, rounded up."""
    return 256 - 256 * at["strength"].abs() // (STRENGTHS - 1)
