"""Crops against plain slicing and torch's own interpolation, and the distribution of their parameters."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import interpolate

from infer2train.draws.addresses import Purpose, seeds
from infer2train.sources.views.crops import PadCropFlip, RandomResizedCropFlip

OWN = seeds(3, Purpose.PROBE, slot=np.arange(5000))


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("h", "w", "c", "padding"), [(32, 32, 3, 4), (5, 9, 1, 2), (8, 8, 2, 0)])
def test_pad_crop_flip_is_slicing(h: int, w: int, c: int, padding: int) -> None:
    images, view = noise(50, h, w, c), PadCropFlip(padding)
    at = view.draw(OWN[:50], h, w)
    got = view.apply(images, at)
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = padded[at["top"][i] : at["top"][i] + h, at["left"][i] : at["left"][i] + w]
        expected = crop[:, ::-1] if at["flip"][i] else crop
        assert np.array_equal(got[i].permute(1, 2, 0).numpy(), expected)


def test_pad_crop_flip_is_uniform() -> None:
    at = PadCropFlip(4).draw(OWN, 32, 32)
    places = np.zeros((9, 9, 2))
    np.add.at(places, (at["top"], at["left"], at["flip"]), 1)
    assert stats.chisquare(places.ravel()).pvalue > 0.001  # jointly: so the three are independent too


def test_flips_can_be_turned_off() -> None:
    assert not PadCropFlip(flip=False).draw(OWN, 32, 32)["flip"].any()
    assert not RandomResizedCropFlip(32, flip=False).draw(OWN, 32, 32)["flip"].any()


@pytest.mark.parametrize(("h", "w", "size"), [(64, 64, 56), (40, 61, 24), (13, 9, 32), (32, 32, 32)])
def test_resized_crop_is_torch_interpolation(h: int, w: int, size: int) -> None:
    images, view = noise(40, h, w, 3), RandomResizedCropFlip(size)
    at = view.draw(OWN[:40], h, w)
    got = view.apply(images, at)
    for i, image in enumerate(images):
        top, left, height, width = (int(at[name][i]) for name in ("top", "left", "height", "width"))
        crop = image[top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        exact = interpolate(crop, (size, size), mode="bilinear", align_corners=False)[0]
        exact = exact.flip(2) if at["flip"][i] else exact
        assert (got[i] - exact).abs().max() < 1.0


def test_crop_of_everything_at_its_own_size_is_the_image() -> None:
    images = noise(4, 17, 17, 3)
    view = RandomResizedCropFlip(17, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    assert torch.equal(view(images, OWN[:4]), images.permute(0, 3, 1, 2))


def test_resized_crop_follows_torchvision_algorithm() -> None:
    """Area and aspect ratio of what is drawn, against the same algorithm written out for one image at a time."""
    h, w = 60, 100
    at = RandomResizedCropFlip(32).draw(OWN, h, w)
    generator = np.random.default_rng(0)
    expected = np.array([_reference_crop(generator, h, w) for _ in range(5000)])
    got = np.stack([at["top"], at["left"], at["height"], at["width"]], axis=1)
    for column in range(4):
        assert stats.ks_2samp(got[:, column], expected[:, column]).pvalue > 0.001
    area, ratio = got[:, 2] * got[:, 3], got[:, 3] / got[:, 2]
    assert stats.ks_2samp(area, expected[:, 2] * expected[:, 3]).pvalue > 0.001
    assert stats.ks_2samp(ratio, expected[:, 3] / expected[:, 2]).pvalue > 0.001
    assert (got[:, 0] + got[:, 2] <= h).all()
    assert (got[:, 1] + got[:, 3] <= w).all()
    assert stats.binomtest(int(at["flip"].sum()), 5000).pvalue > 0.001


def _reference_crop(generator: np.random.Generator, h: int, w: int) -> tuple[int, int, int, int]:
    """torchvision.transforms.RandomResizedCrop.get_params, line for line."""
    for _ in range(10):
        area = h * w * generator.uniform(0.08, 1.0)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= w and 0 < height <= h:
            return generator.integers(0, h - height + 1), generator.integers(0, w - width + 1), height, width
    width, height = (round(h * 4 / 3), h) if w / h > 4 / 3 else (w, round(w / 0.75)) if w / h < 0.75 else (w, h)
    return (h - height) // 2, (w - width) // 2, height, width


@pytest.mark.parametrize(
    ("h", "w", "expected"), [(10, 40, (0, 13, 10, 13)), (40, 10, (13, 0, 13, 10)), (20, 20, (0, 0, 20, 20))]
)
def test_what_never_fits_becomes_the_central_crop(h: int, w: int, expected: tuple[int, ...]) -> None:
    """An image so long that the whole of its area fits in no allowed shape; and one that the ten tries just missed."""
    view = RandomResizedCropFlip(8, scale=(1.0, 1.0))
    at = view.draw(OWN[:200], h, w)
    crops = np.stack([at["top"], at["left"], at["height"], at["width"]], axis=1)
    assert (crops == expected).all(axis=1).mean() > (0.99 if h != w else 0.1)
    among_others = view.draw(OWN[:200], np.where(np.arange(200) % 2, h, 33), np.where(np.arange(200) % 2, w, 77))
    assert all(np.array_equal(among_others[name][1::2], at[name][1::2]) for name in at)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PadCropFlip(-1), "padding must be at least 0 pixels: got -1"),
        (lambda: RandomResizedCropFlip(0), "size must be at least 1"),
        (lambda: RandomResizedCropFlip(8, scale=(0.5, 0.2)), "scale must be"),
        (lambda: RandomResizedCropFlip(8, ratio=(0.0, 1.0)), "ratio must be"),
    ],
)
def test_refusals(make, said) -> None:
    with pytest.raises(ValueError, match=said):
        make()
