"""Every view of `VIEWS` against the conformance suite, and the suite against views that are broken on purpose."""

import os
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance.views import check_view
from infer2train.draws.addresses import Purpose, integers
from infer2train.sources.views.affine import ShiftRotate
from infer2train.sources.views.crops import PadCropFlip, RandomResizedCropFlip
from infer2train.sources.views.identity import EvaluationCrop, Identity
from infer2train.sources.views.named import VIEWS, make_view
from infer2train.sources.views.view import Parameters, View


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VIEWS)
def test_conformance(name: str) -> None:
    check_view(make_view(name, size=20), noise(3, 16, 16, 3))


@pytest.mark.parametrize(
    "view",
    [
        PadCropFlip(padding=2, flip=False),
        PadCropFlip(padding=0),
        RandomResizedCropFlip(7, scale=(0.5, 1.0), flip=False),
        RandomResizedCropFlip(5, scale=(0.9, 1.0), ratio=(3.0, 4.0)),  # often falls back to the centre
        ShiftRotate(shift=0.0, rotation=180.0),
        EvaluationCrop(8),
    ],
    ids=lambda view: type(view).__name__,
)
def test_conformance_on_one_channel_and_other_sides(view: View) -> None:
    check_view(view, noise(3, 9, 14, 1))


class Broken(PadCropFlip):
    """What the broken views below are wrong in one thing about."""

    padding = 2


class IgnoresSeed(Broken):
    def draw(self, seeds: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        return super().draw(np.zeros_like(seeds), height, width)


class DependsOnPlace(Broken):
    def draw(self, seeds: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        top = integers(5, seeds, Purpose.PARAMETER, slot=np.arange(len(seeds)))
        return super().draw(seeds, height, width) | {"top": top}


class DependsOnLastOfManyPlaces(Broken):
    """As vector instructions do that compute the rest of an array otherwise."""

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        pixels = super().apply(images, parameters)
        if len(pixels) > 1:
            pixels[-1, 0, 0, 0] += 1
        return pixels


class HiddenState(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def draw(self, seeds: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        return super().draw(seeds, height, width) | {"top": self.generator.integers(0, 5, len(seeds))}


class GlobalState(Broken):
    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return super().apply(images, parameters) + torch.randint(0, 2, (1,), dtype=torch.uint8)


class MovesGlobalState(Broken):
    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        np.random.random()
        return super().apply(images, parameters)


class DependsOnProcess(Broken):
    def draw(self, seeds: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        return super().draw(seeds ^ os.getpid(), height, width)


class WritesToImages(Broken):
    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        images += 1
        return super().apply(images, parameters)


class PlanarMemory(Broken):
    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        return super().apply(images, parameters).contiguous()


class WrongSize(Broken):
    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height + 2, width + 2


class RandomWhenNotAllowed(Broken):
    random: ClassVar[bool] = False


BROKEN = {
    IgnoresSeed: "ignored",
    DependsOnPlace: "alone",
    DependsOnLastOfManyPlaces: "alone",
    HiddenState: "global random state|second time",
    GlobalState: "moved",
    MovesGlobalState: "moved",
    DependsOnProcess: "another process",
    WritesToImages: "write to the images",
    PlanarMemory: "NHWC",
    WrongSize: "output_size",
    RandomWhenNotAllowed: "not random",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_suite_fails_on_broken_views(broken: type[View]) -> None:
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_view(broken(), noise(3, 8, 8, 3))


def test_sizes_of_all_views() -> None:
    assert make_view("random-resized-crop-flip", size=12).output_size(30, 40) == (12, 12)
    assert make_view("pad-crop-flip", size=32).output_size(30, 40) == (30, 40)
    assert isinstance(make_view("identity", size=32), Identity)


def test_unknown_view_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"pad-crop-flip, random.*did you mean 'pad-crop-flip'"):
        make_view("padcropflip", size=32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", VIEWS)
def test_same_pixels_on_the_gpu(name: str) -> None:
    view, images = make_view(name, size=20), noise(64, 16, 16, 3)
    own = np.arange(64)
    assert torch.equal(view(images, own), view(images.cuda(), own).cpu())
