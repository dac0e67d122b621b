"""Albumentations ignores the global seeds; under Replay its transforms follow the address all the same."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import Dataset, Subset, default_collate

from conformance.views import check_source
from infer2train.draws.addresses import Addresses
from infer2train.sources.replay import Replay

HERE = Addresses(np.array([3, 3, 1, 4]), np.array([5, 6, 7, 8]))

A = pytest.importorskip("albumentations", reason="albumentations is not installed")


def flips() -> Any:
    return A.Compose([A.HorizontalFlip(p=0.5), A.OneOf([A.VerticalFlip(p=1.0), A.Transpose(p=1.0)], p=0.5)])


class Augmented(Dataset[Any]):
    """The usual way of use: a Compose as an attribute, called on an array."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) + np.uint8(index)
        return self.transform(image=image)["image"], index


def closed_over() -> Any:
    compose = flips()
    return lambda image: compose(image=image)


MODULE_LEVEL = flips()


def helper(image: Any) -> Any:
    return MODULE_LEVEL(image=image)


AUGMENTED = {
    "attribute": lambda: Augmented(flips()),
    "subset": lambda: Subset(Augmented(flips()), [1, 2, 3, 4, 5]),
    "closure": lambda: Augmented(closed_over()),
    "global": lambda: Augmented(lambda image: MODULE_LEVEL(image=image)),
    "comprehension": lambda: Augmented(lambda image: {one: MODULE_LEVEL(image=image) for one in [0]}[0]),
    "inner lambda": lambda: Augmented(lambda image: (lambda one: MODULE_LEVEL(image=one))(image)),
    "helper": lambda: Augmented(lambda image: helper(image)),
    "partial": lambda: Augmented(partial(flips())),
    "list": lambda: Subset(Augmented(A.Sequential([flips()], p=1.0)), range(5)),
    "lone": lambda: Augmented(A.HorizontalFlip(p=0.5)),
}


@pytest.mark.parametrize("way", AUGMENTED)
def test_albumentations_follow_the_seed(way: str) -> None:
    data = AUGMENTED[way]()
    source = Replay(data, default_collate)
    addresses = Addresses(np.zeros(64, dtype=np.int64), np.arange(64))
    images = source.batch(addresses)[0]
    assert len(torch.unique(images.flatten(1), dim=0)) > 1
    assert torch.equal(images.flip(0), source.batch(addresses[::-1])[0])
    other = Replay(AUGMENTED[way](), default_collate)
    assert torch.equal(images, other.batch(addresses)[0])


def by_name(image: Any) -> Any:
    return MODULE_LEVEL(image=image)


@pytest.mark.parametrize("transform", [flips(), by_name], ids=["travels", "is-another-in-another-process"])
def test_albumentations_conformance(transform: Any) -> None:
    check_source(Replay(Augmented(transform), default_collate))


def test_albumentations_own_state_is_put_back() -> None:
    plain, replayed = Augmented(flips()), Augmented(flips())
    for data in (plain, replayed):
        data.transform.set_random_seed(5)
    source = Replay(replayed, default_collate)
    source.batch(HERE)
    for _ in range(20):
        assert np.array_equal(plain[0][0], replayed[0][0])


def test_albumentations_transforms_draw_independently() -> None:
    """set_random_seed would give each transform the same stream: both flips together or none."""
    data = Augmented(A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]))
    images = Replay(data, default_collate).batch(Addresses(np.zeros(400, dtype=np.int64), np.arange(400)))[0]
    _, counts = torch.unique(images.flatten(1), dim=0, return_counts=True)
    assert len(counts) == 4
    assert stats.chisquare(counts).pvalue > 0.001


def test_albumentations_out_of_sight_are_refused() -> None:
    with pytest.raises(ValueError, match="private generator"):
        Replay(OutOfSight(None), default_collate)


class OutOfSight(Augmented):
    """A method names its transform: found by nobody who looks at attributes."""

    def __getitem__(self, index: int) -> Any:
        return MODULE_LEVEL(image=np.arange(27, dtype=np.uint8).reshape(3, 3, 3))["image"], index
