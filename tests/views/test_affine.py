"""Shifts and rotations against torch's grid_sample, and the distribution of their amounts."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import grid_sample

from infer2train.draws.addresses import Purpose, seeds
from infer2train.sources.views.affine import ShiftRotate
from infer2train.sources.views.elementary import exponential, sine_and_cosine

OWN = seeds(3, Purpose.PROBE, slot=np.arange(5000))
UNIT = 2.0**20


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("h", "w", "shift", "rotation"), [(8, 8, 1.0, 10.0), (28, 28, 3.0, 180.0), (7, 12, 0.5, 45.0)])
def test_is_grid_sample(h: int, w: int, shift: float, rotation: float) -> None:
    images, view = noise(60, h, w, 2), ShiftRotate(shift, rotation)
    at = {name: torch.from_numpy(value).double() for name, value in view.draw(OWN[:60], h, w).items()}
    y = (torch.arange(h) - (h - 1) / 2)[:, None] - at["down"][:, None, None] / 2048
    x = (torch.arange(w) - (w - 1) / 2) - at["right"][:, None, None] / 2048
    cosine, sine = at["cosine"][:, None, None] / UNIT, at["sine"][:, None, None] / UNIT
    rows, columns = cosine * y - sine * x, sine * y + cosine * x  # from the image's centre
    grid = torch.stack([columns * 2 / w, rows * 2 / h], dim=-1)
    exact = grid_sample(images.permute(0, 3, 1, 2).double(), grid, align_corners=False)
    assert (view(images, OWN[:60]) - exact).abs().max() < 1.0


def test_without_amounts_is_the_image() -> None:
    images = noise(3, 8, 9, 1)
    assert torch.equal(ShiftRotate(0.0, 0.0)(images, OWN[:3]), images.permute(0, 3, 1, 2))


def test_a_shift_by_whole_pixels_moves_the_image_and_fills_with_zeros() -> None:
    images = noise(1, 5, 5, 1)
    at = {"sine": 0, "cosine": 1 << 20, "down": 2 * 2048, "right": -1 * 2048}
    got = ShiftRotate().apply(images, {name: np.array([value]) for name, value in at.items()})[0, 0]
    expected = torch.zeros(5, 5, dtype=torch.uint8)
    expected[2:, :-1] = images[0, :-2, 1:, 0]
    assert torch.equal(got, expected)


def test_a_quarter_turn_is_exact() -> None:
    images = noise(1, 6, 6, 3)
    at = {"sine": 1 << 20, "cosine": 0, "down": 0, "right": 0}
    got = ShiftRotate().apply(images, {name: np.array([value]) for name, value in at.items()})[0].permute(1, 2, 0)
    assert torch.equal(got, torch.rot90(images[0], k=-1))


def test_amounts_are_uniform_and_independent() -> None:
    at = ShiftRotate(shift=1.5, rotation=10.0).draw(OWN, 8, 8)
    angle = np.degrees(np.arctan2(at["sine"], at["cosine"]))
    down, right = at["down"] / 2048, at["right"] / 2048
    for amount, most in ((angle, 10.0), (down, 1.5), (right, 1.5)):
        assert stats.kstest(amount, stats.uniform(-most, 2 * most).cdf).pvalue > 0.001
    correlation = np.corrcoef([angle, down, right])
    assert np.abs(correlation - np.eye(3)).max() < 0.05


def test_elementary_functions_are_those_of_the_library() -> None:
    x = np.linspace(-8, 8, 1001)
    assert np.allclose(exponential(x), np.exp(x), rtol=1e-9, atol=0)
    angles = np.linspace(-math.pi, math.pi, 1001)
    sine, cosine = sine_and_cosine(angles)
    assert np.allclose(sine, np.sin(angles), rtol=0, atol=1e-9)
    assert np.allclose(cosine, np.cos(angles), rtol=0, atol=1e-9)


@pytest.mark.parametrize("amounts", [(-1.0, 10.0), (1.0, -10.0), (1.0, 181.0), (math.nan, 10.0)])
def test_refusals(amounts: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ShiftRotate(*amounts)
