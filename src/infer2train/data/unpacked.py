"""Encoded images in one file a split, as they were in Parquet shards: what makes any one of them cheap to read.

A row of a shard can only be had with its whole row group, so a random image of a photograph-sized data set costs a
hundred: milliseconds, where a seek in a plain file costs some ten microseconds. Hence the images are copied once, as
they are:

    manifest.json   as in every entry of the cache
    train-encoded.npy   the content of all image files, one after the other
    train-ends.npy      where each one ends (bytes)
    train-targets.npy   and the same three for test

A gap in the data is an image of no bytes.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from rich.console import Console
from rich.progress import Progress

from infer2train.data.encoded import EncodedData, EncodedImages, EncodedSplit
from infer2train.data.entry import SPLITS, DamagedEntryError, GrowingArray, map_array, open_targets, opened, save_array
from infer2train.data.images import DataError
from infer2train.data.once import EncodedRows


@dataclass(frozen=True)
class UnpackedImages(EncodedImages):
    """The images of one split.

    Args:
        path: of the file with their contents.
        start: where the first one starts in it (bytes).
        ends: where each one ends, from `start` on (bytes).
        shards: the names of the shards that they came from.
        shard_ends: ids after the last one of each shard.
    """

    path: Path
    start: int
    ends: Int64[np.ndarray, " n"]
    shards: tuple[str, ...]
    shard_ends: Int64[np.ndarray, " s"]

    def __len__(self) -> int:
        return len(self.ends)

    def encoded(self, sample_id: int) -> bytes | None:
        first, end = (int(self.ends[sample_id - 1]) if sample_id else 0), int(self.ends[sample_id])
        with self.path.open("rb") as file:
            file.seek(self.start + first)
            return file.read(end - first) or None

    def place(self, sample_id: int) -> str:
        shard = int(np.searchsorted(self.shard_ends, sample_id, side="right"))
        first = int(self.shard_ends[shard - 1]) if shard else 0
        return f"{self.shards[shard]}, row {sample_id - first}"


def unpack(splits: Mapping[str, EncodedRows], entry: Path, *, progress: bool) -> None:
    """Copy the encoded images of splits into an entry in the making."""
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for name, split in splits.items():
            if not split.num:
                raise DataError(f"a split must hold images: got no rows of {name}; replace its files")
            task = bar.add_task(f"unpacking {name}", total=split.num)
            sizes, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
            with closing(GrowingArray(entry / f"{name}-encoded.npy", ())) as contents:
                for rows in split.rows:
                    contents.append(np.frombuffer(b"".join(image or b"" for image in rows.encoded), np.uint8))
                    sizes.append(np.array([len(image or b"") for image in rows.encoded], np.int64))
                    targets.append(rows.targets)
                    bar.advance(task, len(rows))
            save_array(entry / f"{name}-ends.npy", np.cumsum(np.concatenate(sizes)))
            save_array(entry / f"{name}-targets.npy", np.concatenate(targets))


def open_unpacked(
    folder: Path, *, name: str, fingerprint: str, rows: Mapping[str, Mapping[str, int]], image_size: int | None
) -> EncodedData:
    """Open an entry after checking that it is whole.

    Args:
        folder: of the entry.
        name: of the data set.
        fingerprint: of its shards.
        rows: of each split, the shards in their order and how many rows each has.
        image_size: for `EncodedSplit`.

    Raises:
        DamagedEntryError: a file is missing or is not what the manifest says; which.
    """
    with opened(folder, fingerprint) as (contents, shapes):
        train, test = (
            EncodedSplit(
                _open_images(folder, split, shapes, rows[split]),
                open_targets(folder, split, shapes, len(contents.class_names)),
                image_size,
            )
            for split in SPLITS
        )
        return EncodedData(name, train, test, contents.class_names, fingerprint)


def _open_images(folder: Path, split: str, shapes: dict[str, Any], rows: Mapping[str, int]) -> UnpackedImages:
    contents = map_array(folder / f"{split}-encoded.npy", shapes, np.uint8)
    ends = np.array(map_array(folder / f"{split}-ends.npy", shapes, np.int64))
    if len(ends) and (ends[-1] != len(contents) or (np.diff(ends, prepend=0) < 0).any()):
        raise DamagedEntryError(f"{folder}: the images of {split} do not fill their file")
    shard_ends = np.cumsum(list(rows.values()), dtype=np.int64)
    return UnpackedImages((folder / f"{split}-encoded.npy").absolute(), contents.offset, ends, tuple(rows), shard_ends)
