"""Images read one by one: the views of `ImageViews` to the bit, whatever else is in the batch; one reading a sample."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from conformance.views import check_source
from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.sources.views import on_demand
from infer2train.sources.views.crops import PadCropFlip, RandomResizedCropFlip
from infer2train.sources.views.identity import EvaluationCrop, Identity
from infer2train.sources.views.image_views import ImageViews
from infer2train.sources.views.on_demand import OnDemandViews
from infer2train.sources.views.view import View

SHAPES = [(40, 30), (17, 64), (40, 30), (64, 17), (33, 33), (5, 60), (40, 30)]
TARGETS = np.arange(len(SHAPES)) * 10
RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


def photo(sample_id: int) -> np.ndarray:
    return PHOTOS[sample_id]


def draw(num: int) -> Addresses:
    slots = np.arange(num)
    return Addresses(integers(len(PHOTOS), 0, Purpose.PROBE, slot=slots), seeds(1, Purpose.PROBE, slot=slots))


def alone(view: View, sample_id: int, seed: int) -> torch.Tensor:
    """The view as images in memory give it."""
    return ImageViews(PHOTOS[sample_id][None], TARGETS[:1], view).batch(Addresses(np.array([0]), np.array([seed])))[0]


VIEWS = [RandomResizedCropFlip(24), EvaluationCrop(24)]


@pytest.mark.parametrize("view", VIEWS, ids=["random", "evaluation"])
def test_a_source_like_any_other(view: View) -> None:
    check_source(OnDemandViews(photo, TARGETS, view))


@pytest.mark.parametrize("view", VIEWS, ids=["random", "evaluation"])
@pytest.mark.parametrize("held_bytes", [1, 10_000, on_demand.HELD_BYTES])
def test_the_bits_of_images_in_memory(view: View, held_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "HELD_BYTES", held_bytes)
    addresses = draw(90)
    pixels, targets = OnDemandViews(photo, TARGETS, view).batch(addresses)
    assert torch.equal(pixels, torch.cat([alone(view, sample_id, seed) for sample_id, seed in addresses]))
    assert targets.tolist() == TARGETS[addresses.ids].tolist()
    assert pixels.permute(0, 2, 3, 1).is_contiguous(), "the memory must be NHWC, as every view has it"


def test_each_sample_is_read_once_for_all_its_views() -> None:
    read: Counter[int] = Counter()

    def counted(sample_id: int) -> np.ndarray:
        read[sample_id] += 1
        return PHOTOS[sample_id]

    source = OnDemandViews(counted, TARGETS, RandomResizedCropFlip(24))
    shuffled = np.random.default_rng(1).permutation(np.repeat(np.arange(7), 10))
    source.batch(Addresses(shuffled, np.arange(70)))
    assert read == dict.fromkeys(range(7), 1)
    read.clear()
    draw_of_slots = Addresses(np.repeat([4, 2, 6], 10), np.arange(30))
    for start in range(0, 30, 8):  # an oracle's chunks cut through the views of a sample
        source.batch(draw_of_slots[start : start + 8])
    assert read == {4: 1, 2: 1, 6: 1}


def test_no_more_than_is_allowed_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "HELD_BYTES", 3 * PHOTOS[0].nbytes)
    source = OnDemandViews(lambda _: PHOTOS[0], np.zeros(50, np.int64), RandomResizedCropFlip(8))
    every = [images for _, images, _ in source._portions(np.arange(50))]
    assert max(map(len, every)) == 3
    assert sum(map(len, every)) == 50


def test_no_image_travels_to_another_process() -> None:
    source = OnDemandViews(photo, TARGETS, RandomResizedCropFlip(24))
    before = len(pickle.dumps(source))
    source.batch(draw(3))
    assert len(pickle.dumps(source)) == before


def test_an_ordinary_data_set_under_torchs_seed() -> None:
    data = OnDemandViews(photo, TARGETS, RandomResizedCropFlip(24))
    torch.manual_seed(3)
    first = data[1]
    torch.manual_seed(3)
    again = data[1]
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1] == 10
    assert not torch.equal(data[1][0], first[0])


@pytest.mark.parametrize("ids", [[-1], [7], [0, 8]])
def test_an_id_that_no_image_has(ids: list[int]) -> None:
    with pytest.raises(IndexError, match=r"ids must be in \[0, 7\)"):
        OnDemandViews(photo, TARGETS, EvaluationCrop(8)).batch(Addresses(np.array(ids), np.zeros(len(ids), np.int64)))


@pytest.mark.parametrize("view", [PadCropFlip(), Identity()])
def test_a_view_that_keeps_an_images_size(view: View) -> None:
    with pytest.raises(ValueError, match=f"got {type(view).__name__}, which keeps"):
        OnDemandViews(photo, TARGETS, view)
