"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that ship with scikit-learn.

No download and no cache: what the tests and a first run train on. With only 200 images to train on, selection has
something to win; the 1,597 others make a test set on which a difference of one per cent can be seen.

Their file is read where scikit-learn has it, without importing scikit-learn: that imports joblib, which renames every
semaphore that this process makes from then on, so that those left behind by a kill seem to be somebody else's.
"""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from infer2train.data.images import DataSet, ImageData, ImageSplit
from infer2train.data.subsets import balanced_ids

FILE = Path("datasets", "data", "digits.csv.gz")
"""In scikit-learn's package."""
NUM_CLASSES = 10
HIGHEST = 16
"""scikit-learn's grey values are counts of set pixels in 4x4 blocks: 0 to 16."""


def load(*, cache_dir: Path | None = None, progress: bool = False, num_train: int = 200, seed: int = 0) -> ImageData:
    """The digits, cut once and for all into a class-balanced training split and the rest as the test split.

    The split does not depend on a run's seed, so all runs are tested on the same images.

    Args:
        cache_dir: not needed; an argument of every loader.
        progress: not needed; an argument of every loader.
        num_train: images in the training split, a class-balanced choice; all others are for the test.
        seed: which ones.

    Returns:
        Grey images, 8x8x1, scaled from 0..16 to 0..255.

    Raises:
        ValueError: num_train leaves nothing to train on or nothing to test on.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """
    grey, targets = _grey_and_targets()
    if not 0 < num_train < len(targets):
        raise ValueError(f"num_train must be in 1..{len(targets) - 1} for digits: got {num_train}; use 200")
    images = ((grey * 255 + HIGHEST // 2) // HIGHEST).astype(np.uint8).reshape(-1, 8, 8, 1)
    split = ImageSplit(images, targets)
    train = balanced_ids(split.targets, num_train, seed)
    test = np.setdiff1d(np.arange(len(targets)), train)
    content = hashlib.sha256(b"digits 1\0" + images.tobytes() + split.targets.tobytes() + train.tobytes())
    names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return DataSet("digits", split.part(train), split.part(test), names, content.hexdigest())


def load_half(*, cache_dir: Path | None = None, progress: bool = False) -> ImageData:
    """Half of the digits to train on, for what needs more than 200, such as labels some of which are made wrong.

    Example:
        >>> len(load_half().train), len(load_half().test)
        (898, 899)
    """
    return load(cache_dir=cache_dir, progress=progress, num_train=898)


def _grey_and_targets() -> tuple[Int64[np.ndarray, "n 64"], Int64[np.ndarray, " n"]]:
    """scikit-learn's grey values, 0 to 16, and which digit each image is; one line of its file an image."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError("digits come with scikit-learn: got no package sklearn; pip install scikit-learn")
    lines = np.loadtxt(Path(package.origin).parent / FILE, dtype=np.int64, delimiter=",")
    return lines[:, :-1], lines[:, -1]
