"""Any folder of Parquet shards in the Hugging Face hub's image layout, decoded once into the cache.

`shards` finds files, columns and labels, `decoding` decodes one image, `cache` keeps the result; this module is the
loop between them. Batches of rows are decoded by threads, since Pillow lets go of the interpreter while it decodes. At
32x32 pixels most of the time is spent opening the image instead, where threads gain nothing; other processes would, but
cost seconds to start and fail in scripts without a `__main__` guard.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import Progress

from infer2train.data.cache import cached
from infer2train.data.decoding import BadImageError, decode
from infer2train.data.entry import FORMAT, Contents, SplitWriter
from infer2train.data.fingerprints import fingerprint
from infer2train.data.images import DataError, ImageData
from infer2train.data.shards import Columns, find_shards, read_columns, read_labels, readable

MAX_IMAGE_SIZE = 4096
_BATCH_ROWS = 256
_TASK_ROWS = 16
"""Rows that one thread takes at a time: fewer cost more in handing over, more leave threads idle at a batch's end."""


@dataclass(frozen=True)
class Rows:
    """Some consecutive rows of one shard.

    Args:
        path: the shard.
        first: the number of the first row in the shard.
        encoded: one image file's content a row; None where there is none.
        targets: of the same rows.
    """

    path: Path
    first: int
    encoded: list[bytes | None]
    targets: Int64[np.ndarray, " b"]

    def __len__(self) -> int:
        return len(self.encoded)

    def place(self, row: int) -> str:
        """Where one of these rows is, for an error."""
        return f"{self.path.name}, row {self.first + row}"


def load_folder(
    folder: Path,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: bool = True,
) -> ImageData:
    """The images of a folder as RGB uint8, from the cache if these very files were decoded before.

    Args:
        folder: holds train*.parquet and test*.parquet, or validation* in the place of test*.
        cache_dir: of the decoded arrays, height x width x 3 bytes an image; made if it does not exist.
        image_size: height and width in pixels, as for `decoding.decode`. Default: as stored, all of one size.
        on_bad_image: an image that cannot be decoded is an error, or is left out and counted in `skipped`.
        progress: show progress on standard error while decoding.

    Raises:
        ValueError: the folder, a shard, a label or an image is not as it must be: which, and the remedy.
    """
    if image_size is not None and not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"image_size must be in 1..{MAX_IMAGE_SIZE} pixels: got {image_size}; pass --image-size 224")
    shards = find_shards(folder)
    options = {"layout": "parquet", "format": FORMAT, "image_size": image_size, "on_bad_image": on_bad_image}
    content = fingerprint([*shards["train"], *shards["test"]], options, cache_dir)

    def build(entry: Path) -> Contents:
        return _decode_folder(shards, entry, image_size, on_bad_image == "skip", progress)

    return cached(cache_dir, name=folder.resolve().name, fingerprint=content, build=build)


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


def _decode_folder(
    shards: dict[str, list[Path]], entry: Path, image_size: int | None, skip: bool, progress: bool
) -> Contents:
    columns = read_columns([*shards["train"], *shards["test"]])
    labels = {path: read_labels(path, columns) for path in chain(*shards.values())}
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        bar = stack.enter_context(Progress(console=Console(stderr=True), disable=not progress, transient=True))
        decoder = _Decoder(threads, image_size, skip)
        for split, paths in shards.items():
            task = bar.add_task(f"decoding {split}", total=sum(len(labels[path]) for path in paths))
            advance = partial(bar.advance, task)
            _decode_split(split, {path: labels[path] for path in paths}, columns, entry, decoder, advance)
    num_unnamed = 1 + max(int(targets.max(initial=0)) for targets in labels.values())
    return Contents(columns.class_names or tuple(str(k) for k in range(num_unnamed)), decoder.skipped)


def _decode_split(
    split: str,
    labels: dict[Path, Int64[np.ndarray, " n"]],
    columns: Columns,
    entry: Path,
    decoder: _Decoder,
    advance: Callable[[float], None],
) -> None:
    writer: SplitWriter | None = None
    with ExitStack() as stack:
        for path, targets in labels.items():
            for rows in _read_rows(path, columns, targets):
                images, kept = decoder.decode(rows)
                if len(images):
                    writer = writer or stack.enter_context(SplitWriter(entry, split, images.shape[1:]))
                    writer.append(images, kept)
                advance(len(rows))
    if writer is None:
        total = sum(len(targets) for targets in labels.values())
        raise DataError(
            f"a split must hold images: got none that is good in {total} rows of {split}; replace its shards"
        )


def _read_rows(path: Path, columns: Columns, targets: Int64[np.ndarray, " n"]) -> Iterator[Rows]:
    import pyarrow.parquet as pq

    first = 0
    with readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
        for batch in shard.iter_batches(_BATCH_ROWS, columns=[columns.image]):
            encoded = batch.column(0).field("bytes").to_pylist()
            yield Rows(path, first, encoded, targets[first : first + len(encoded)])
            first += len(encoded)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
