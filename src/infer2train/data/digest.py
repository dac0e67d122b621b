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
    few = split.part(np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(np.int64)))
    if isinstance(few, EncodedSplit):
        contents = [few.encoded(number) or b"" for number in range(len(few))]
    else:
        contents = [image.tobytes() for image in few.pixels()]
    for content in contents:
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()
