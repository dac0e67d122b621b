"""Every image of a data set read once, into an entry of the cache: decoded to one size, or copied as it is.

Between the layouts (`class_folders`, `parquet`), which give encoded images, and `cache`, which keeps arrays:

    train-images.npy    decoded: the pixels of all images
    train-encoded.npy   as they are: the content of all image files, one after the other,
    train-ends.npy      and where each one ends (bytes); a gap in the data is an image of no bytes
    train-targets.npy   and the same for test

Batches of images are decoded by threads, since Pillow lets go of the interpreter while it decodes. At 32x32 pixels most
of the time is spent opening the image instead, where threads gain nothing; other processes would, but cost seconds to
start and fail in scripts without a `__main__` guard.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import Progress

from infer2train.data.cache import Contents, Entry, growing_array, kept
from infer2train.data.decoding import VERSION, BadImageError, decode
from infer2train.data.images import DataError, DataSet, EncodedData, ImageData, ImageSplit

SPLITS = ("train", "test")
MAX_IMAGE_SIZE = 4096
BATCH_ROWS = 256
"""Encoded images in memory at a time."""
_GROUP_BYTES = 2**28
"""Pixels in memory at a time, but for those of one image: a small file may hold many."""
_TASK_ROWS = 16
"""Rows that one thread takes at a time: fewer cost more in handing over, more leave threads idle at a batch's end."""


@dataclass(frozen=True)
class Rows:
    """The images of one split, to be read once from first to last.

    Args:
        targets: one an image.
        batches: the content of their files, `BATCH_ROWS` or fewer at a time; None where there is none.
        place: where one of them is, for an error.
    """

    targets: Int64[np.ndarray, " n"]
    batches: Iterable[list[bytes | None]]
    place: Callable[[int], str]


class Layout(ABC):
    """A folder that was looked at, so that whatever is wrong with it, but for labels and images, was said already."""

    name: str

    @abstractmethod
    def fingerprint(self, cache_dir: Path, **options: object) -> str:
        """Of the files, of what is read from them, and of options; hexadecimal."""

    @abstractmethod
    def rows(self) -> tuple[dict[str, Rows], tuple[str, ...]]:
        """The images of "train" and "test", and the names of the classes."""

    @abstractmethod
    def on_demand(self, cache_dir: Path, *, image_size: int | None, progress: bool) -> EncodedData:
        """The images, to be decoded when they are needed, then to `image_size` at most."""


def check_image_size(image_size: int | None) -> None:
    """Refuse sizes that no image has, with a `ValueError`."""
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be in 1..{MAX_IMAGE_SIZE} pixels: got {image_size}; pass --image-size 224")


def decoded(
    layout: Layout, cache_dir: Path, *, image_size: int | None, on_bad_image: Literal["error", "skip"], progress: bool
) -> ImageData:
    """The images as RGB uint8, from the cache if these very files were decoded before; see `load_data`."""
    content = layout.fingerprint(cache_dir, decoding=VERSION, image_size=image_size, on_bad_image=on_bad_image)

    def build(folder: Path) -> Contents:
        splits, class_names = layout.rows()
        decoder = _Decoder(image_size, on_bad_image == "skip")
        with ThreadPoolExecutor(os.cpu_count()) as threads, progress_bar(progress) as bar:
            for name, rows in splits.items():
                task = bar.add_task(f"decoding {name}", total=len(rows.targets))
                good: list[int] = []
                first = 0
                with growing_array(folder / f"{name}-images.npy") as append:
                    for batch in rows.batches:
                        for row, pixels in decoder.decode(first, batch, rows.place, threads):
                            append(pixels[None])
                            good.append(row)
                        first += len(batch)
                        bar.advance(task, len(batch))
                    if not good:
                        raise DataError(
                            f"a split must hold images: got none that is good in {first} rows of {name}; replace its "
                            "files"
                        )
                _save(folder / f"{name}-targets.npy", rows.targets[good])
        return Contents(class_names, decoder.skipped)

    return open_decoded(layout.name, cache_dir, content, build)


def open_decoded(name: str, cache_dir: Path, content: str, build: Callable[[Path], Contents]) -> ImageData:
    """The decoded images of this fingerprint, built first if they are not in the cache."""

    def look(entry: Entry) -> ImageData:
        train, test = (ImageSplit(entry.array(f"{key}-images", np.uint8), entry.targets(key)) for key in SPLITS)
        return DataSet(name, train, test, entry.contents.class_names, content, entry.contents.skipped)

    return kept(cache_dir / f"images-{content[:32]}", content, look, build)


def unpack(layout: Layout, folder: Path, progress: bool) -> Contents:
    """Copy the encoded images of all splits into an entry in the making."""
    splits, class_names = layout.rows()
    with progress_bar(progress) as bar:
        for name, rows in splits.items():
            if not len(rows.targets):
                raise DataError(f"a split must hold images: got no rows of {name}; replace its files")
            task = bar.add_task(f"unpacking {name}", total=len(rows.targets))
            sizes: list[int] = []
            with growing_array(folder / f"{name}-encoded.npy") as append:
                for batch in rows.batches:
                    append(np.frombuffer(b"".join(image or b"" for image in batch), np.uint8))
                    sizes += [len(image or b"") for image in batch]
                    bar.advance(task, len(batch))
            _save(folder / f"{name}-ends.npy", np.cumsum(sizes, dtype=np.int64))
            _save(folder / f"{name}-targets.npy", rows.targets)
    return Contents(class_names)


def progress_bar(shown: bool) -> Progress:
    """Progress on standard error."""
    return Progress(console=Console(stderr=True), disable=not shown, transient=True)


def _save(path: Path, array: Int64[np.ndarray, " n"]) -> None:
    with growing_array(path) as append:
        append(array)


class _Decoder:
    """Decodes images to one size, which the first good one decides, and counts those that are left out."""

    def __init__(self, image_size: int | None, skip: bool) -> None:
        self._image_size, self._skip = image_size, skip
        self._shape: tuple[int, ...] | None = None
        self.skipped = 0

    def decode(
        self, first: int, batch: list[bytes | None], place: Callable[[int], str], threads: ThreadPoolExecutor
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """Row and pixels of each good image of a batch; `first` is the row of the batch's first image."""

        def task(rows: range) -> list[UInt8[np.ndarray, "h w 3"] | None]:
            return [self._pixels(batch[row], place, first + row) for row in rows]

        start = 0
        while start < len(batch):
            num = 1 if self._shape is None else max(1, _GROUP_BYTES // math.prod(self._shape))
            group = range(start, min(start + num, len(batch)))
            step = _TASK_ROWS if num >= BATCH_ROWS else 1  # large images are worth handing over one by one
            tasks = [group[at : at + step] for at in range(0, len(group), step)]
            for row, pixels in zip(group, chain.from_iterable(threads.map(task, tasks)), strict=True):
                if pixels is None:
                    self.skipped += 1
                    continue
                self._shape = self._shape or pixels.shape
                yield first + row, pixels
            start = group.stop

    def _pixels(
        self, encoded: bytes | None, place: Callable[[int], str], row: int
    ) -> UInt8[np.ndarray, "h w 3"] | None:
        """None for an image that is left out."""
        try:
            pixels = decode(encoded, self._image_size)
        except BadImageError as error:
            if self._skip:
                return None
            raise DataError(
                f"images must be whole: {place(row)} cannot be decoded ({error}); pass --on-bad-image skip to leave "
                "such images out"
            ) from error
        if self._shape is not None and pixels.shape != self._shape:
            (height, width, _), (first_height, first_width, _) = pixels.shape, self._shape
            raise DataError(
                f"images must have one size: {place(row)} has {width}x{height}, the first has "
                f"{first_width}x{first_height}; pass --image-size {min(self._shape[:2])} to resize and crop all of them"
            )
        return pixels
