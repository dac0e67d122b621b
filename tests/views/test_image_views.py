"""Images in memory as a source and as an ordinary data set."""

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conformance.views import check_source, elsewhere
from infer2train.draws.addresses import Addresses
from infer2train.sources.views.affine import ShiftRotate
from infer2train.sources.views.crops import PadCropFlip, RandomResizedCropFlip
from infer2train.sources.views.identity import Identity
from infer2train.sources.views.image_views import ImageViews

N = 40
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 10, 12, 3), dtype=np.uint8)
TARGETS = np.arange(N) % 7
SOME = Addresses(np.array([3, 0, 3, 39]), np.array([5, 6, 7, 8]))


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    np.save(tmp_path / "images.npy", IMAGES)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize(
    "view", [PadCropFlip(2), RandomResizedCropFlip(7), ShiftRotate(), Identity()], ids=lambda v: type(v).__name__
)
def test_conformance(view, mapped: np.memmap) -> None:
    check_source(ImageViews(mapped, TARGETS, view))


def test_an_address_is_its_image_under_its_seed_with_its_target() -> None:
    pixels, targets = ImageViews(IMAGES, TARGETS, PadCropFlip(2)).batch(SOME)
    assert targets.tolist() == TARGETS[SOME.ids].tolist()
    for i, (sample_id, seed) in enumerate(SOME):
        alone = PadCropFlip(2)(torch.from_numpy(IMAGES[[sample_id]]), np.array([seed]))
        assert torch.equal(pixels[i], alone[0])


def test_arrays_maps_and_tensors_give_the_same(mapped: np.memmap) -> None:
    expected = ImageViews(IMAGES, TARGETS, PadCropFlip(2)).batch(SOME)
    for images in (mapped, torch.from_numpy(IMAGES), np.asfortranarray(IMAGES)):
        for targets in (TARGETS, torch.from_numpy(TARGETS)):
            got = ImageViews(images, targets, PadCropFlip(2)).batch(SOME)
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])


def test_a_batch_belongs_to_the_caller(mapped: np.memmap) -> None:
    for images in (IMAGES.copy(), mapped, torch.from_numpy(IMAGES.copy())):
        source = ImageViews(images, TARGETS, Identity())
        pixels, targets = source.batch(SOME)
        pixels.zero_()
        targets.zero_()
        again = source.batch(SOME)
        assert again[0].any()
        assert again[1].any()


def test_a_batch_copies_only_its_own_images() -> None:
    images = np.zeros((2000, 32, 32, 3), dtype=np.uint8)
    source = ImageViews(images, np.zeros(2000, dtype=np.int64), PadCropFlip())
    source.batch(SOME)
    tracemalloc.start()
    source.batch(SOME)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < images.nbytes / 50


def test_a_mapped_file_travels_by_name(mapped: np.memmap) -> None:
    source = ImageViews(mapped, TARGETS, PadCropFlip(2))
    sent = pickle.dumps(source)
    assert len(sent) < IMAGES.nbytes / 4
    received = pickle.loads(sent)
    assert isinstance(received.images, np.memmap)
    assert np.array_equal(received.images, IMAGES)
    assert source.images is mapped, "pickling must not change what is pickled"


def test_part_of_a_mapped_file_travels_whole(mapped: np.memmap) -> None:
    """A slice of a map says the whole map's offset: mapping it again by that would show other images."""
    received = pickle.loads(pickle.dumps(ImageViews(mapped[5:], TARGETS[5:], Identity())))
    assert np.array_equal(received.images, IMAGES[5:])


def test_is_an_ordinary_data_set() -> None:
    data = ImageViews(IMAGES, TARGETS, PadCropFlip(2))
    torch.manual_seed(0)
    epochs = [list(DataLoader(data, batch_size=16, shuffle=True)) for _ in range(2)]
    for epoch in epochs:
        assert [len(y) for _, y in epoch] == [16, 16, 8]
        assert sorted(torch.cat([y for _, y in epoch]).tolist()) == sorted(TARGETS.tolist())
        assert {(x.dtype, x.shape[1:]) for x, _ in epoch} == {(torch.uint8, (3, 10, 12))}
    torch.manual_seed(0)
    again = list(DataLoader(data, batch_size=16, shuffle=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epochs[0], again, strict=True)), "follows torch's seed"
    image, target = data[7]
    assert image.shape == (3, 10, 12)
    assert (type(target), target) == (int, 0)
    assert not torch.equal(torch.stack([data[7][0] for _ in range(8)]), image.expand(8, -1, -1, -1))


def test_an_item_shows_its_own_image() -> None:
    data = ImageViews(IMAGES, TARGETS, Identity())
    for (image, target), sample_id in zip(data.__getitems__([4, 2, 4]), [4, 2, 4], strict=True):
        assert np.array_equal(image.permute(1, 2, 0), IMAGES[sample_id])
        assert target == TARGETS[sample_id]


@pytest.mark.parametrize("index", [-1, N])
def test_ids_outside_are_an_error(index: int) -> None:
    with pytest.raises(IndexError, match=rf"ids must be in \[0, {N}\): got {index}"):
        ImageViews(IMAGES, TARGETS, Identity()).batch(Addresses(np.array([0, index]), np.array([1, 2])))


def test_every_image_needs_a_target() -> None:
    with pytest.raises(ValueError, match="got 40 images and 39 targets"):
        ImageViews(IMAGES, TARGETS[1:], Identity())


FLOATS = torch.zeros(N, 10, 12, 3)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (FLOATS, r"got float32 .*; pass \(x \* 255\)\.round\(\)\.to\(torch\.uint8\), where x is from 0 to 1$"),
        (FLOATS.numpy(), r"pass \(x \* 255\)\.round\(\)\.astype\(np\.uint8\), where x is from 0 to 1$"),
        (IMAGES.astype(np.int64), r"got int64 .*; pass x\.astype\(np\.uint8\), where x is from 0 to 255$"),
        (IMAGES[..., 0], r"of shape \(40, 10, 12\); pass x\[\.\.\., None\] if x is grey"),
        (IMAGES.transpose(0, 3, 1, 2), r"of shape \(40, 3, 10, 12\); pass x\.transpose\(0, 2, 3, 1\)"),
        (torch.from_numpy(IMAGES).permute(0, 3, 1, 2), r"pass x\.permute\(0, 2, 3, 1\)"),
    ],
)
def test_images_that_are_no_pixels_are_refused_with_the_line_that_makes_them(images: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"must be uint8 pixels \[n, h, w, c\], channels last: .*{said}"):
        ImageViews(images, TARGETS, Identity())


def test_workers_that_are_spawned_give_the_same(mapped: np.memmap) -> None:
    source = ImageViews(mapped, TARGETS, PadCropFlip(2))
    there = elsewhere().submit(source.batch, SOME).result()
    assert torch.equal(there[0], source.batch(SOME)[0])
