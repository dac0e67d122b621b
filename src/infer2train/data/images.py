"""What every loader returns: a split to train on and one to test on, their images in pixels or still encoded.

First in the way of the data: a sample id is an index of a split. Pixels stay uint8; normalisation is part of the
model's side, random transforms are `views`' business. Encoded images are for data that does not fit memory, or the
cache's disk, decoded: `views.on_demand` makes views of them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

LARGEST_COPY = 1 << 29
"""Of the pixels of a part of a split (bytes): more stay in the cache's file, which processes share."""


class DataError(ValueError):
    """Data that is not as it must be; says which file, what was got and the remedy."""


@dataclass(frozen=True)
class ImageSplit:
    """The images of one split and their labels, read-only by convention.

    Args:
        images: pixels, channels last, c = 1 (grey) or 3 (RGB); usually a read-only `np.memmap`.
        targets: class of each image, in [0, number of classes).
        numbers: which of `images` each sample is. Default: all of them, in their order.

    Example:
        >>> split = ImageSplit(np.zeros((2, 8, 8, 1), np.uint8), np.array([4, 1]))
        >>> len(split)
        2
    """

    images: UInt8[np.ndarray, "i h w c"]
    targets: Int64[np.ndarray, " n"]
    numbers: Int64[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        assert self.images.ndim == 4, self.images.shape
        assert self.images.shape[3] in (1, 3), self.images.shape
        length = self.images.shape[:1] if self.numbers is None else self.numbers.shape
        assert self.targets.shape == length, (self.targets.shape, length)

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, ids: Int64[np.ndarray, " m"]) -> "ImageSplit":
        """The samples of these ids, read-only; copied into memory where that is little, else left where they are."""
        numbers = ids if self.numbers is None else self.numbers[ids]
        targets = self.targets[ids]
        targets.flags.writeable = False
        if len(ids) * self.images[:1].nbytes > LARGEST_COPY:
            return ImageSplit(self.images, targets, numbers)
        images = np.asarray(self.images)[numbers]
        images.flags.writeable = False
        return ImageSplit(images, targets)

    def pixels(self) -> UInt8[np.ndarray, "n h w c"]:
        """All of them, in memory."""
        return np.asarray(self.images) if self.numbers is None else np.asarray(self.images)[self.numbers]


class EncodedImages(ABC):
    """The content of image files by number.

    Called from the trainer's process, from the oracle's and from `DataLoader` workers: picklable, and small when
    pickled. Files are opened by each call and closed by it.
    """

    @abstractmethod
    def encoded(self, number: int) -> bytes | None:
        """A file's content, None where the data has a gap; raises `OSError`."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Where the image is, for an error: a file, or shard and row."""


@dataclass(frozen=True)
class EncodedSplit:
    """The encoded images of one split and their labels.

    Args:
        images: where they are.
        targets: class of each image, in [0, number of classes).
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.
        numbers: which of `images` each sample is. Default: all of them, in their order.
    """

    images: EncodedImages
    targets: Int64[np.ndarray, " n"]
    image_size: int | None = None
    numbers: Int64[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def place(self, sample_id: int) -> str:
        """Where the image is: a file, or shard and row."""
        return self.images.place(self._number(sample_id))

    def encoded(self, sample_id: int) -> bytes | None:
        """The content of the image's file, None where there is a gap; a `DataError` if it cannot be read."""
        try:
            return self.images.encoded(self._number(sample_id))
        except OSError as error:
            raise DataError(
                f"images must be there, and readable, as long as a run lasts: {self.place(sample_id)} is not "
                f"({error.strerror}); put it back, or correct its permissions"
            ) from error

    def pixels(self, sample_id: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image, read and decoded; a `DataError` if it cannot be."""
        from infer2train.data.decoding import BadImageError, decode

        try:
            return decode(self.encoded(sample_id), self.image_size, square=False)
        except BadImageError as error:
            raise DataError(
                f"images must be whole: {self.place(sample_id)} cannot be decoded ({error}); replace or remove it, or "
                "pass --decode once --on-bad-image skip to leave such images out"
            ) from error

    def part(self, ids: Int64[np.ndarray, " m"]) -> "EncodedSplit":
        """The samples of these ids; nothing is read."""
        numbers = ids if self.numbers is None else self.numbers[ids]
        return replace(self, numbers=numbers, targets=self.targets[ids])

    def _number(self, sample_id: int) -> int:
        return sample_id if self.numbers is None else int(self.numbers[sample_id])


AnySplit = ImageSplit | EncodedSplit
S = TypeVar("S", ImageSplit, EncodedSplit)


@dataclass(frozen=True)
class DataSet(Generic[S]):
    """Two splits, and where they came from.

    Args:
        name: its own or the hub's name, or that of the folder.
        train: what is trained on.
        test: what is evaluated on.
        class_names: one a class; targets index it.
        fingerprint: hexadecimal SHA-256 of the content and of how it was decoded; equal exactly for equal data.
        skipped: images left out of both splits because they could not be decoded; none where that is found out later.
    """

    name: str
    train: S
    test: S
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: int = 0


ImageData = DataSet[ImageSplit]
EncodedData = DataSet[EncodedSplit]
