"""Images that stay encoded until they are needed: for data sets that do not fit memory, or the cache's disk, decoded.

Beside `images`, which has pixels in memory-mapped arrays. Where the bytes come from is `class_folders`' and
`unpacked`'s business; decoding them is `decoding`'s; views of them make `views.on_demand`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from infer2train.data.images import DataError, ImageSplit


class EncodedImages(ABC):
    """The content of image files by sample id.

    Called from the trainer's process, from the oracle's and from `DataLoader` workers: picklable, and small when
    pickled. Files are opened by each call and closed by it.
    """

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def encoded(self, sample_id: int) -> bytes | None:
        """A file's content; None where the data has a gap.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def place(self, sample_id: int) -> str:
        """Where the image is, for an error: a file, or shard and row."""


@dataclass(frozen=True)
class EncodedSplit:
    """The encoded images of one split and their labels.

    Args:
        images: one a sample.
        targets: class of each image, in [0, number of classes).
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.
    """

    images: EncodedImages
    targets: Int64[np.ndarray, " n"]
    image_size: int | None = None

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.targets), (len(self.images), len(self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    def encoded(self, sample_id: int) -> bytes | None:
        """The content of the image's file.

        Raises:
            DataError: it cannot be read; which one and why.
        """
        try:
            return self.images.encoded(sample_id)
        except OSError as error:
            raise DataError(
                f"images must be there, and readable, as long as a run lasts: {self.images.place(sample_id)} is not "
                f"({error.strerror}); put it back, or correct its permissions"
            ) from error

    def pixels(self, sample_id: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image, read and decoded.

        Raises:
            DataError: it cannot be; which one and why.
        """
        from infer2train.data.decoding import BadImageError, decode

        encoded = self.encoded(sample_id)
        try:
            return decode(encoded, self.image_size, square=False)
        except BadImageError as error:
            raise DataError(
                f"images must be whole: {self.images.place(sample_id)} cannot be decoded ({error}); replace or remove "
                "it, or pass --decode once --on-bad-image skip to leave such images out"
            ) from error

    def part(self, ids: Int64[np.ndarray, " m"]) -> "EncodedSplit":
        """The samples of these ids; nothing is read."""
        return replace(self, images=_Chosen(self.images, ids), targets=self.targets[ids])


Split = ImageSplit | EncodedSplit
"""Samples with labels, in pixels or encoded."""


@dataclass(frozen=True)
class EncodedData:
    """A data set whose images are decoded on demand: two splits, and where they came from.

    Args:
        name: that of the folder.
        train: what is trained on.
        test: what is evaluated on.
        class_names: one a class; targets index it.
        fingerprint: hexadecimal SHA-256; of what, says the loader.
    """

    name: str
    train: EncodedSplit
    test: EncodedSplit
    class_names: tuple[str, ...]
    fingerprint: str
    skipped: ClassVar[int] = 0
    """None is left out: an image that cannot be decoded is found out only when it is needed."""


@dataclass(frozen=True)
class _Chosen(EncodedImages):
    """Some of the images, under ids of their own."""

    images: EncodedImages
    ids: Int64[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.ids)

    def encoded(self, sample_id: int) -> bytes | None:
        return self.images.encoded(int(self.ids[sample_id]))

    def place(self, sample_id: int) -> str:
        return self.images.place(int(self.ids[sample_id]))
