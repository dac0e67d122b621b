"""The views without randomness: nothing changed, and torchvision's evaluation crop."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from infer2train.sources.views.identity import EvaluationCrop, Identity

OWN = np.arange(4)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_identity_is_the_image() -> None:
    images = noise(4, 6, 9, 3)
    assert torch.equal(Identity()(images, OWN), images.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("h", "w", "size"), [(64, 64, 56), (256, 320, 224), (90, 75, 56), (20, 33, 56)])
def test_evaluation_crop_is_resize_and_central_crop(h: int, w: int, size: int) -> None:
    images = noise(4, h, w, 3)
    got = EvaluationCrop(size)(images, OWN)
    shorter = size * 8 // 7
    scaled = (shorter, int(shorter * w / h)) if h <= w else (int(shorter * h / w), shorter)
    scale = shorter / min(h, w)
    resized = interpolate(
        images.permute(0, 3, 1, 2).double(),
        scale_factor=(scale, scale),
        recompute_scale_factor=False,
        mode="bilinear",
        align_corners=False,
    )
    top, left = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    exact = resized[:, :, top : top + size, left : left + size]
    assert (got - exact).abs().max() < 1.0


def test_evaluation_crop_refuses_nothing_to_see() -> None:
    with pytest.raises(ValueError, match="size must be at least 1 pixel: got 0"):
        EvaluationCrop(0)
