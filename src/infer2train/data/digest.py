"""Whether a run's images are those that it began with: a sample id says which image only while nobody changes them.

An image that is added, removed or moved to another class gives others new ids. Reading all of a large data set at each
start would take minutes, so a digest has every label, and the content of a few images.
"""

import hashlib

import numpy as np

from infer2train.data.images import AnySplit, EncodedSplit

LOOKED_AT = 64
"""Images whose content is in the digest."""


def digest(split: AnySplit) -> str:
    """SHA-256 of all labels of a split, in their order, and of a few of its images; hexadecimal.

    Example:
        >>> from infer2train.data.images import ImageSplit
        >>> one = ImageSplit(np.zeros((2, 8, 8, 1), np.uint8), np.array([4, 1]))
        >>> digest(one) == digest(one), digest(one) == digest(one.part(np.array([1, 0])))
        (True, False)
    """
    found = hashlib.sha256(np.asarray(split.targets, np.int64).tobytes())
    for number in np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(np.int64)):
        found.update(hashlib.sha256(_content(split, int(number))).digest())
    return found.hexdigest()


def _content(split: AnySplit, sample_id: int) -> bytes:
    if isinstance(split, EncodedSplit):
        return split.encoded(sample_id) or b""
    number = sample_id if split.numbers is None else int(split.numbers[sample_id])
    return np.ascontiguousarray(split.images[number]).tobytes()
