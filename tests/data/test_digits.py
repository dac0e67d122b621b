import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from infer2train.data.digits import _grey_and_targets, load, load_half


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


def test_half_of_them_is_another_split_of_the_same() -> None:
    half = load_half()
    assert (len(half.train), len(half.test)) == (898, 899)
    assert {image.tobytes() for image in load().train.images} <= {image.tobytes() for image in half.train.images}


@pytest.mark.parametrize("num_train", [0, 1797])
def test_both_splits_must_have_images(num_train: int) -> None:
    with pytest.raises(ValueError, match="num_train must be in"):
        load(num_train=num_train)


def test_the_file_is_read_as_scikit_learn_reads_it() -> None:
    for ours, theirs in zip(_grey_and_targets(), load_digits(return_X_y=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)


KILLED = """
import multiprocessing, os, signal, sys
from infer2train.data.digits import load

load()
lock = multiprocessing.get_context("spawn").Lock()
print("joblib" in sys.modules, lock._semlock.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="looks at semaphores where Linux has them")
def test_the_semaphores_of_a_run_keep_their_names() -> None:
    """joblib, which scikit-learn imports, renames all of them to `loky-PID-…`: those of a killed run look like its."""
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        has_joblib, name = process.stdout.read().split()
        assert process.wait() == -signal.SIGKILL
    assert has_joblib == "False"
    assert name.startswith("/mp-")
    assert list(Path("/dev/shm").glob(f"sem.loky-{process.pid}-*")) == []
