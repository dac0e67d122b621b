import numpy as np
import pytest
from sklearn.datasets import load_digits

from infer2train.data.digits import load


def test_the_splits_are_all_digits_once() -> None:
    data = load()
    assert (len(data.train), len(data.test), data.skipped) == (200, 1597, 0)
    both = np.concatenate([data.train.images, data.test.images]).reshape(1797, 64)
    everything = np.round(load_digits().data * 255 / 16 + 1e-9).astype(np.uint8)
    np.testing.assert_array_equal(both[np.lexsort(both.T)], everything[np.lexsort(everything.T)])


def test_training_is_balanced_and_the_whole_range_is_used() -> None:
    data = load()
    assert np.bincount(data.train.targets).tolist() == [20] * 10
    assert data.train.images.shape == (200, 8, 8, 1)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)


def test_images_keep_their_labels() -> None:
    grey, targets = load_digits(return_X_y=True)
    images = np.round(grey * 255 / 16 + 1e-9).astype(np.uint8)
    label_of = {image.tobytes(): target for image, target in zip(images, targets, strict=True)}
    for split in (load().train, load().test):
        for image, target in zip(split.images, split.targets, strict=True):
            assert label_of[image.tobytes()] == target


def test_the_split_is_the_same_each_time_and_its_fingerprint_says_which() -> None:
    np.testing.assert_array_equal(load().train.images, load().train.images)
    fingerprints = {load().fingerprint, load().fingerprint, load(seed=1).fingerprint, load(num_train=300).fingerprint}
    assert len(fingerprints) == 3


@pytest.mark.parametrize("num_train", [0, 1797])
def test_both_splits_must_have_images(num_train: int) -> None:
    with pytest.raises(ValueError, match="num_train must be in"):
        load(num_train=num_train)
