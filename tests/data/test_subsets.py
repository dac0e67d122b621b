from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer2train.data import images
from infer2train.data.images import ImageSplit
from infer2train.data.subsets import balanced_ids, hold_out, limit_split, long_tailed, mislabelled, near_copies
from infer2train.draws.addresses import Addresses
from infer2train.sources.views.identity import Identity
from infer2train.sources.views.image_views import ImageViews


def split_of(targets: Any) -> ImageSplit:
    """Each image holds its own id, so that what was kept can be read off."""
    targets = np.asarray(targets, np.int64)
    return ImageSplit(np.arange(len(targets), dtype=np.uint8).reshape(-1, 1, 1, 1), targets)


def ids(split: ImageSplit) -> list[int]:
    return [int(k) for k in split.images[:, 0, 0, 0]]


TARGETS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 25))


@given(n=st.integers(1, 100), seed=st.integers(0, 2**63 - 1))
def test_quotas_differ_by_one_at_most(n: int, seed: int) -> None:
    counts = np.bincount(limit_split(split_of(TARGETS), n, seed).targets, minlength=4)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1


@given(smaller=st.integers(1, 100), larger=st.integers(1, 100), seed=st.integers(0, 9))
def test_a_larger_subset_contains_the_smaller(smaller: int, larger: int, seed: int) -> None:
    smaller, larger = sorted((smaller, larger))
    kept = [set(ids(limit_split(split_of(TARGETS), n, seed))) for n in (smaller, larger)]
    assert kept[0] <= kept[1]


def test_images_keep_their_labels_and_their_order() -> None:
    part = limit_split(split_of(TARGETS), 42, seed=3)
    assert ids(part) == sorted(ids(part))
    np.testing.assert_array_equal(part.targets, TARGETS[ids(part)])


def test_what_a_small_class_cannot_give_is_passed_on() -> None:
    part = limit_split(split_of([0] * 2 + [1] * 10 + [2] * 10), 14, seed=0)
    assert np.bincount(part.targets).tolist() == [2, 6, 6]


def test_all_is_all() -> None:
    assert ids(limit_split(split_of(TARGETS), 100, seed=5)) == list(range(100))


def test_the_seed_decides_which_samples_and_which_classes_get_the_remainder() -> None:
    split = split_of(TARGETS)
    assert ids(limit_split(split, 40, 1)) == ids(limit_split(split, 40, 1))
    assert ids(limit_split(split, 40, 1)) != ids(limit_split(split, 40, 2))
    favoured = {int(limit_split(split, 1, seed).targets[0]) for seed in range(40)}
    assert favoured == {0, 1, 2, 3}


def test_every_sample_has_the_same_chance() -> None:
    counts = np.zeros(100)
    for seed in range(400):
        counts[balanced_ids(TARGETS, 20, seed)] += 1
    # 80 expected; the standard deviation of a fair choice is 8.
    assert np.abs(counts - 80).max() < 40


@pytest.mark.parametrize("n", [0, -1, 101])
def test_a_limit_that_cannot_be_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=r"limit must be in 1\.\.100.*lower --limit"):
        limit_split(split_of(TARGETS), n, seed=0)


def test_held_out_and_rest_are_the_whole() -> None:
    rest, held = hold_out(split_of(TARGETS), 20, seed=0)
    assert sorted(ids(rest) + ids(held)) == list(range(100))
    assert np.bincount(held.targets).tolist() == [5] * 4
    assert ids(rest) == sorted(ids(rest))
    np.testing.assert_array_equal(rest.targets, TARGETS[ids(rest)])


def test_validation_images_are_not_the_first_that_a_limit_takes() -> None:
    split = split_of(TARGETS)
    assert ids(hold_out(split, 20, seed=0)[1]) != ids(limit_split(split, 20, seed=0))


@pytest.mark.parametrize("n", [0, 100])
def test_something_must_be_left_to_train_on(n: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.99: got .*lower --validation-split"):
        hold_out(split_of(TARGETS), n, seed=0)


def test_a_large_part_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(TARGETS)
    copied = limit_split(hold_out(split, 20, seed=0)[0], 40, seed=1)
    monkeypatch.setattr(images, "LARGEST_COPY", 0)
    part = limit_split(hold_out(split, 20, seed=0)[0], 40, seed=1)
    assert part.images is split.images
    np.testing.assert_array_equal(part.pixels(), copied.images)
    np.testing.assert_array_equal(part.targets, copied.targets)
    views = ImageViews(part.images, part.targets, Identity(), part.numbers)
    seen, targets = views.batch(Addresses(np.arange(40), np.zeros(40, dtype=np.int64)))
    np.testing.assert_array_equal(seen.permute(0, 2, 3, 1).numpy(), copied.images)
    assert targets.tolist() == copied.targets.tolist()
    assert len(views) == 40
    with pytest.raises(IndexError, match=r"\[0, 40\): got 40"):
        views.batch(Addresses(np.array([40]), np.array([0])))


def test_parts_do_not_write_through_to_the_original() -> None:
    original = split_of(TARGETS)
    part = limit_split(original, 10, seed=0)
    assert not np.shares_memory(part.images, original.images)
    with pytest.raises(ValueError, match="read-only"):
        part.images[0] = 0


@given(imbalance=st.floats(1, 25), seed=st.integers(0, 9))
def test_a_long_tail_falls_geometrically_from_the_first_class_to_the_last(imbalance: float, seed: int) -> None:
    counts = np.bincount(long_tailed(split_of(TARGETS), imbalance, seed).targets, minlength=4)
    np.testing.assert_allclose(counts, 25 * imbalance ** (-np.arange(4) / 3), atol=0.5)
    assert counts[0] == 25


def test_a_longer_tail_is_part_of_a_shorter_one_and_images_keep_their_labels() -> None:
    short, long = (long_tailed(split_of(TARGETS), imbalance, seed=3) for imbalance in (2, 10))
    assert set(ids(long)) < set(ids(short))
    assert ids(long) == sorted(ids(long))
    np.testing.assert_array_equal(long.targets, TARGETS[ids(long)])
    assert ids(long) != ids(long_tailed(split_of(TARGETS), 10, seed=4))


def test_a_tail_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"imbalance must leave an image of each.*got 100 for 4 classes of 25"):
        long_tailed(split_of(TARGETS), 100, seed=0)


@given(share=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_as_many_labels_are_wrong_as_were_asked_for(share: float, seed: int) -> None:
    noisy = mislabelled(split_of(TARGETS), share, 4, seed)
    assert int((noisy.targets != TARGETS).sum()) == int(share * 100 + 0.5)
    assert noisy.targets.min() >= 0
    assert noisy.targets.max() < 4
    assert ids(noisy) == list(range(100))


def test_more_noise_contains_less_and_wrong_labels_are_spread_over_the_other_classes() -> None:
    targets = np.zeros(3000, np.int64)
    split = ImageSplit(np.zeros((3000, 1, 1, 1), np.uint8), targets)
    some, more = (mislabelled(split, share, 4, seed=1).targets for share in (0.3, 0.6))
    np.testing.assert_array_equal(more[some != 0], some[some != 0])
    np.testing.assert_allclose(np.bincount(more, minlength=4), [1200, 600, 600, 600], atol=80)
    assert (split.targets == 0).all(), "the split that was given keeps its labels"


def textured(n: int) -> ImageSplit:
    images = np.random.default_rng(1).integers(40, 200, (n, 6, 5, 3)).astype(np.uint8)
    return ImageSplit(images, np.arange(n, dtype=np.int64) % 4)


def test_a_copy_is_its_image_moved_by_a_pixel_at_most_in_another_light() -> None:
    split, copied = textured(100), near_copies(textured(100), 3, seed=0)
    assert len(copied) == 99
    first = copied.images[::3]
    kept = [int(np.flatnonzero((split.images == image).all(axis=(1, 2, 3)))[0]) for image in first]
    assert kept == sorted(set(kept))
    np.testing.assert_array_equal(copied.targets, np.repeat(split.targets[kept], 3))
    assert np.bincount(copied.targets).max() - np.bincount(copied.targets).min() == 3, "33 of four classes"
    seen = set()
    for copy in (1, 2):
        for image, other in zip(first, copied.images[copy::3], strict=True):
            around = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(float)
            moved = {(y, x): around[y : y + 6, x : x + 5] for y in range(3) for x in range(3)}
            light = {place: float((other / part).mean()) for place, part in moved.items()}
            misses = {place: np.abs(other - light[place] * part).max() for place, part in moved.items()}
            place = min(misses, key=lambda at: misses[at])
            assert misses[place] < 1.5, "rounding"
            assert 0.89 < light[place] < 1.11
            seen.add(place)
    assert len(seen) == 9, "all directions"
    assert not np.array_equal(copied.images[1::3], copied.images[2::3])


def test_copies_are_the_same_under_one_seed_and_one_copy_is_the_split_itself() -> None:
    split = textured(40)
    np.testing.assert_array_equal(near_copies(split, 2, 3).images, near_copies(split, 2, 3).images)
    assert not np.array_equal(near_copies(split, 2, 3).images, near_copies(split, 2, 4).images)
    np.testing.assert_array_equal(near_copies(split, 1, 3).images, split.images)


@pytest.mark.parametrize("copies", [0, 41])
def test_copies_of_no_image_are_refused(copies: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.40: got .*lower --copies"):
        near_copies(textured(40), copies, seed=0)
