"""Each operation against Pillow's, and the distribution of what is drawn."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import Tensor

from infer2train.draws.addresses import Purpose, seeds
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.trivial_augment import OPERATIONS, STRENGTHS, TrivialAugment

OWN = seeds(3, Purpose.PROBE, slot=np.arange(30_000))
SIGNED = range(1 - STRENGTHS, STRENGTHS)
WITHOUT_STRENGTH = ["auto-contrast", "equalize"]
ENHANCED = {
    "brightness": ImageEnhance.Brightness,
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}

LEVELS_APART = {name: int(name == "auto-contrast") for name in OPERATIONS}
"""Grey levels: none, but where auto-contrast comes to a whole number, which Pillow's float64 may put just below it."""


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def smooth(n: int, h: int, w: int, c: int) -> Tensor:
    """Images like photographs: large patches in some of the levels, with a black margin as a crop leaves it."""
    small = noise(n, c, 4, 4).float() * torch.linspace(0.2, 1.0, n)[:, None, None, None]
    large = torch.nn.functional.interpolate(small, (h, w), mode="bilinear").round().to(torch.uint8)
    large[::2, :, :3] = 0
    return large.permute(0, 2, 3, 1).contiguous()


def amounts(n: int, name: str, strength: int) -> dict[str, np.ndarray]:
    """The parameters of n views that are neither moved nor flipped by the crop."""
    angle = math.radians(4.5 * strength)
    values = {"top": 0, "left": 0, "flip": 0, "operation": list(OPERATIONS).index(name), "strength": strength}
    values |= {"sine": round(2**32 * math.sin(angle)), "cosine": round(2**32 * math.cos(angle))}
    return {key: np.full(n, value) for key, value in values.items()}


def operated(name: str, images: Tensor, strength: int) -> Tensor:
    return TrivialAugment(padding=0).apply(images, amounts(len(images), name, strength)).permute(0, 2, 3, 1)


def pillow(name: str, pixels: np.ndarray, strength: int) -> np.ndarray:
    """The operation as torchvision and the authors ask Pillow for it, with the wide space's magnitudes."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    part, shift = strength / 30, int(32 * strength / 30)
    coefficients = {
        "shear-x": (1, 0.99 * part, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, 0.99 * part, 1, 0),
        "translate-x": (1, 0, shift, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, shift),
    }
    if name in coefficients:
        image = image.transform(image.size, Image.Transform.AFFINE, coefficients[name])
    elif name in ENHANCED:
        image = ENHANCED[name](image).enhance(1 + 0.99 * part)
    elif name == "rotate":
        image = image.rotate(135 * part)
    elif name == "posterize":
        image = ImageOps.posterize(image, 8 - round(6 * abs(part)))
    elif name == "solarize":
        image = ImageOps.solarize(image, 256 - int(256 * abs(strength) / 30))
    elif name == "auto-contrast":
        image = ImageOps.autocontrast(image)
    elif name == "equalize":
        image = ImageOps.equalize(image)
    return np.asarray(image).reshape(pixels.shape)


def levels_apart(got: Tensor, expected: np.ndarray) -> np.ndarray:
    return np.abs(got.numpy().astype(int) - expected)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_is_pillows(name: str, channels: int) -> None:
    images, apart = torch.cat([noise(3, 32, 32, channels), smooth(5, 32, 32, channels)]), []
    for strength in SIGNED:
        expected = np.stack([pillow(name, image, strength) for image in images.numpy()])
        apart.append(levels_apart(operated(name, images, strength), expected))
    assert np.max(apart) <= LEVELS_APART[name]
    assert np.mean(apart) <= 0.01, "a level apart in few pixels only"


@pytest.mark.parametrize(("h", "w"), [(20, 33), (5, 4), (2, 7), (1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_is_pillows_on_other_sides(name: str, h: int, w: int) -> None:
    images = noise(4, h, w, 3)
    for strength in (-30, -17, -1, 0, 8, 30):
        expected = np.stack([pillow(name, image, strength) for image in images.numpy()])
        assert levels_apart(operated(name, images, strength), expected).max() <= LEVELS_APART[name]


@pytest.mark.parametrize("level", [0, 77, 255])
@pytest.mark.parametrize("name", WITHOUT_STRENGTH)
def test_a_channel_of_one_level_stays(name: str, level: int) -> None:
    images = noise(2, 8, 8, 3)
    images[..., 1] = level
    assert (operated(name, images, 9)[..., 1] == level).all()


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in WITHOUT_STRENGTH])
def test_strength_0_is_the_identity(name: str) -> None:
    images = torch.cat([noise(4, 9, 12, 3), torch.full((1, 9, 12, 3), 255, dtype=torch.uint8)])
    assert torch.equal(operated(name, images, 0), images)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("identity", *WITHOUT_STRENGTH)])
def test_full_strength_is_not(name: str) -> None:
    images = noise(4, 32, 32, 3)
    for strength in (-30, 30):
        assert (operated(name, images, strength) != images).float().mean() > 0.3


def test_colour_leaves_grey_images_alone() -> None:
    images = noise(4, 9, 12, 1)
    assert torch.equal(operated("colour", images, 30), images)
    grey = images.expand(-1, -1, -1, 3).contiguous()
    assert torch.equal(operated("colour", grey, -30), grey)


def test_a_draw_is_the_crop_and_then_what_pillow_does() -> None:
    """What is drawn decides what is seen, in one batch of everything."""
    n = 500
    images, view = smooth(n, 32, 32, 3), TrivialAugment(padding=4)
    at = view.draw(OWN[:n], 32, 32)
    crops = PadCropFlip(4)(images, OWN[:n]).permute(0, 2, 3, 1).numpy()
    got = view(images, OWN[:n]).permute(0, 2, 3, 1)
    names = [list(OPERATIONS)[number] for number in at["operation"]]
    assert set(names) == set(OPERATIONS)
    for i, (name, strength) in enumerate(zip(names, at["strength"].tolist(), strict=True)):
        assert levels_apart(got[i], pillow(name, crops[i], strength)).max() <= LEVELS_APART[name], (name, strength)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_sees_each_image_alone(name: str) -> None:
    """So those that are chosen may be computed apart, as on a CPU, or with all others, as on a GPU."""
    images, operation = smooth(6, 16, 16, 3), OPERATIONS[name]
    parameters = TrivialAugment().draw(OWN[:6], 16, 16)
    at = {key: torch.from_numpy(value) for key, value in parameters.items()}
    together = operation(images, at)
    for i in range(6):
        alone = operation(images[i : i + 1], {key: value[i : i + 1] for key, value in at.items()})
        assert torch.equal(together[i : i + 1], alone)


def test_a_gpu_is_not_asked_for_anything() -> None:
    """Tensors without memory refuse whatever would have to wait for their values."""
    images, view = noise(8, 16, 16, 3), TrivialAugment()
    got = view.apply(images.to("meta"), view.draw(OWN[:8], 16, 16))
    assert (got.device.type, got.shape, got.dtype) == ("meta", (8, 3, 16, 16), torch.uint8)
    assert got.permute(0, 2, 3, 1).is_contiguous()


def test_operations_strengths_and_signs_are_uniform_and_independent() -> None:
    at = TrivialAugment().draw(OWN, 32, 32)
    assert set(at["operation"]) == set(range(14))
    assert stats.chisquare(np.bincount(at["operation"], minlength=14)).pvalue > 0.001
    negative_zero = 1 + (np.arange(-30, 31) == 0)  # both signs of strength 0 are one
    together = np.zeros((14, 61))
    np.add.at(together, (at["operation"], at["strength"] + 30), 1)
    expected = np.broadcast_to(negative_zero * len(OWN) / (14 * 62), together.shape)
    assert stats.chisquare(together.ravel(), expected.ravel()).pvalue > 0.001


def test_operation_is_independent_of_the_crop() -> None:
    at = TrivialAugment(padding=4).draw(OWN, 32, 32)
    for name, places in (("top", 9), ("left", 9), ("flip", 2)):
        for own, kinds in ((at["operation"], 14), (at["strength"] + 30, 61)):
            table = np.zeros((places, kinds))
            np.add.at(table, (at[name], own), 1)
            assert stats.chi2_contingency(table).pvalue > 0.001


def test_the_crop_is_that_of_pad_crop_flip() -> None:
    at, crop = TrivialAugment(3, flip=False).draw(OWN, 8, 9), PadCropFlip(3, flip=False).draw(OWN, 8, 9)
    for name, values in crop.items():
        assert np.array_equal(at[name], values)


def test_angles_follow_the_strength() -> None:
    at = TrivialAugment().draw(OWN, 32, 32)
    angle = np.radians(135 / 30 * at["strength"])
    assert np.abs(at["sine"] / 2**32 - np.sin(angle)).max() < 2e-9
    assert np.abs(at["cosine"] / 2**32 - np.cos(angle)).max() < 2e-9


def test_refuses_other_numbers_of_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels: got 4; use pad-crop-flip"):
        TrivialAugment()(noise(2, 8, 8, 4), OWN[:2])
