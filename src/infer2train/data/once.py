"""Every image of a data set decoded once, to one size, into an entry of the cache.

Between the layouts that give encoded images (`parquet`, `class_folders`) and `entry`, which keeps pixels. Batches of
images are decoded by threads, since Pillow lets go of the interpreter while it decodes. At 32x32 pixels most of the
time is spent opening the image instead, where threads gain nothing; other processes would, but cost seconds to start
and fail in scripts without a `__main__` guard.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import Progress

from infer2train.data.decoding import BadImageError, decode
from infer2train.data.entry import SplitWriter
from infer2train.data.images import DataError

MAX_IMAGE_SIZE = 4096
BATCH_ROWS = 256
"""Encoded images in memory at a time."""
_TASK_ROWS = 16
"""Rows that one thread takes at a time: fewer cost more in handing over, more leave threads idle at a batch's end."""


@dataclass(frozen=True)
class Rows:
    """Some consecutive images of a split, encoded.

    Args:
        encoded: one image file's content a row; None where there is none.
        targets: of the same rows.
        place: where one of these rows is, for an error.
    """

    encoded: list[bytes | None]
    targets: Int64[np.ndarray, " b"]
    place: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True)
class EncodedRows:
    """All images of a split, to be read once from first to last.

    Args:
        num: how many there are.
        rows: these.
    """

    num: int
    rows: Iterable[Rows]


def check_image_size(image_size: int | None) -> None:
    """Refuse sizes that no image has.

    Raises:
        ValueError: it is one.
    """
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be in 1..{MAX_IMAGE_SIZE} pixels: got {image_size}; pass --image-size 224")


def decode_splits(
    splits: Mapping[str, EncodedRows], entry: Path, *, image_size: int | None, skip: bool, progress: bool
) -> int:
    """Decode splits into an entry in the making.

    Args:
        splits: by name.
        entry: its folder.
        image_size: height and width in pixels, as for `decoding.decode`. Default: as stored, all of one size.
        skip: whether images that cannot be decoded are left out.
        progress: show progress on standard error.

    Returns:
        How many images were left out.

    Raises:
        DataError: an image cannot be decoded or has another size, or a split has none; which, and the remedy.
    """
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        bar = stack.enter_context(Progress(console=Console(stderr=True), disable=not progress, transient=True))
        decoder = _Decoder(threads, image_size, skip)
        for name, split in splits.items():
            task = bar.add_task(f"decoding {name}", total=split.num)
            _decode_split(name, split, entry, decoder, partial(bar.advance, task))
    return decoder.skipped


class _Decoder:
    """Decodes batches of rows to images of one size, which the first good image decides."""

    def __init__(self, threads: ThreadPoolExecutor, image_size: int | None, skip: bool) -> None:
        self._threads, self._image_size, self._skip = threads, image_size, skip
        self._shape: tuple[int, ...] | None = None
        self.skipped = 0

    def decode(self, rows: Rows) -> tuple[UInt8[np.ndarray, "b h w 3"], Int64[np.ndarray, " b"]]:
        """The pixels and targets of the rows whose image is good."""
        if self._shape is None:
            self._shape = next(
                (pixels.shape for row in range(len(rows)) if (pixels := self._one(rows, row)) is not None), None
            )
        images = np.empty((len(rows), *(self._shape or (1, 1, 3))), np.uint8)
        good = np.zeros(len(rows), bool)

        def task(start: int) -> None:
            for row in range(start, min(start + _TASK_ROWS, len(rows))):
                if (pixels := self._one(rows, row)) is not None:
                    images[row], good[row] = pixels, True

        list(self._threads.map(task, range(0, len(rows), _TASK_ROWS)))
        self.skipped += int((~good).sum())
        return (images, rows.targets) if good.all() else (images[good], rows.targets[good])

    def _one(self, rows: Rows, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """The pixels of one row; None for an image that is left out."""
        try:
            pixels = decode(rows.encoded[row], self._image_size)
        except BadImageError as error:
            if self._skip:
                return None
            raise DataError(
                f"images must be whole: {rows.place(row)} cannot be decoded ({error}); "
                f"pass --on-bad-image skip to leave such images out"
            ) from error
        if self._shape is not None and pixels.shape != self._shape:
            raise DataError(
                f"images must have one size: {rows.place(row)} has {_size(pixels.shape)}, the first has "
                f"{_size(self._shape)}; pass --image-size {min(self._shape[:2])} to resize and crop all of them"
            )
        return pixels


def _decode_split(
    name: str, split: EncodedRows, entry: Path, decoder: _Decoder, advance: Callable[[float], None]
) -> None:
    writer: SplitWriter | None = None
    with ExitStack() as stack:
        for rows in split.rows:
            images, kept = decoder.decode(rows)
            if len(images):
                writer = writer or stack.enter_context(SplitWriter(entry, name, images.shape[1:]))
                writer.append(images, kept)
            advance(len(rows))
    if writer is None:
        raise DataError(
            f"a split must hold images: got none that is good in {split.num} rows of {name}; replace its files"
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
