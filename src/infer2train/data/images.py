"""Images in memory and their labels: what every loader of the catalogue returns.

First in the way of the data: a sample id is a row of `ImageSplit.images`. Pixels stay uint8; normalisation is part of
the model's side, random transforms are `views`' business.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split and their labels, read-only by convention.

    Args:
        images: pixels, channels last, c = 1 (grey) or 3 (RGB); usually a read-only `np.memmap`.
        targets: class of each image, in [0, number of classes).

    Example:
        >>> split = ImageSplit(np.zeros((2, 8, 8, 1), np.uint8), np.array([4, 1]))
        >>> len(split)
        2
    """

    images: UInt8[np.ndarray, "n h w c"]
    targets: Int64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        assert self.images.ndim == 4, self.images.shape
        assert self.images.shape[3] in (1, 3), self.images.shape
        assert self.targets.shape == self.images.shape[:1], (self.targets.shape, self.images.shape)

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, ids: Int64[np.ndarray, " m"]) -> "ImageSplit":
        """The samples of these ids, copied into memory and read-only."""
        images, targets = np.asarray(self.images)[ids], self.targets[ids]
        images.flags.writeable = targets.flags.writeable = False
        return ImageSplit(images, targets)


@dataclass(frozen=True)
class ImageData:
    """A data set: two splits of images of one size, and where they came from.

    Args:
        name: the catalogue's name, or that of the folder.
        train: what is trained on.
        test: what is evaluated on.
        class_names: one a class; targets index it.
        fingerprint: hexadecimal SHA-256 of the content and of how it was decoded; equal exactly for equal data.
        skipped: images left out of both splits because they could not be decoded.
    """

    name: str
    train: ImageSplit
    test: ImageSplit
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: int


class DataError(ValueError):
    """Data that is not as it must be; says which file, what was got and the remedy."""
