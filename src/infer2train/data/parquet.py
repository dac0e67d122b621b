"""Any folder of Parquet shards in the Hugging Face hub's image layout: decoded once, or unpacked once.

`shards` finds files, `columns` and `labels` what is in them; `once` decodes their images into the cache, `unpacked`
copies them there as they are, to be decoded on demand. This module reads the rows for both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from infer2train.data.cache import cached, kept
from infer2train.data.columns import Columns, read_columns
from infer2train.data.decoding import VERSION
from infer2train.data.encoded import EncodedData
from infer2train.data.entry import FORMAT, Contents, write_manifest
from infer2train.data.fingerprints import fingerprint
from infer2train.data.images import ImageData
from infer2train.data.labels import labelled, read_targets
from infer2train.data.once import BATCH_ROWS, EncodedRows, Rows, check_image_size, decode_splits
from infer2train.data.shards import TRAIN, check_complete, count_rows, find_shards, readable, shown
from infer2train.data.unpacked import open_unpacked, unpack


@dataclass(frozen=True)
class _Found:
    """What a folder holds, once it is known that it can be read: the shards of each split, and their columns."""

    splits: dict[str, list[Path]]
    columns: Columns

    def fingerprint(self, cache_dir: Path, options: dict[str, Any]) -> str:
        """Of the shards, of which split each is in, of what is read from them, and of options."""
        read = {"layout": "parquet", "format": FORMAT, "label": self.columns.label}
        training = [shown(path) for path in self.splits[TRAIN]]
        return fingerprint([*chain(*self.splits.values())], {**read, "train": training, **options}, cache_dir)


def load_folder(
    folder: Path,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    label_column: str | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: bool = True,
) -> ImageData:
    """The images of a folder as RGB uint8, from the cache if these very files were decoded before.

    Args:
        folder: holds train*.parquet and test*.parquet, or validation* in the place of test*; or folders of these names
            with shards.
        cache_dir: of the decoded arrays, height x width x 3 bytes an image; made if it does not exist.
        image_size: height and width in pixels, as for `decoding.decode`. Default: as stored, all of one size.
        label_column: holds the labels. Default: found by name and feature, as by `columns`.
        on_bad_image: an image that cannot be decoded is an error, or is left out and counted in `skipped`.
        progress: show progress on standard error while decoding.

    Raises:
        ValueError: the folder, a shard, a label or an image is not as it must be: which, and the remedy.
    """
    check_image_size(image_size)
    found = _look(folder, label_column)
    options = {"decoding": VERSION, "image_size": image_size, "on_bad_image": on_bad_image}
    content = found.fingerprint(cache_dir, options)

    def build(entry: Path) -> Contents:
        splits, class_names = _read_folder(found)
        skip = on_bad_image == "skip"
        return Contents(class_names, decode_splits(splits, entry, image_size=image_size, skip=skip, progress=progress))

    return cached(cache_dir, name=folder.resolve().name, fingerprint=content, build=build)


def load_encoded(
    folder: Path,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    label_column: str | None = None,
    progress: bool = True,
) -> EncodedData:
    """The images of a folder, encoded as they are, from the cache if these very files were unpacked before.

    Args:
        folder: as for `load_folder`.
        cache_dir: of the unpacked images, which need as much room as the shards; made if it does not exist.
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.
        label_column: as for `load_folder`.
        progress: show progress on standard error while unpacking.

    Raises:
        ValueError: the folder, a shard or a label is not as it must be: which, and the remedy. Images are looked at
            only when they are needed.
    """
    check_image_size(image_size)
    found = _look(folder, label_column)
    content = found.fingerprint(cache_dir, {"encoded": True})
    rows = {split: {shown(path): count_rows(path) for path in paths} for split, paths in found.splits.items()}

    def look(place: Path) -> EncodedData:
        return open_unpacked(place, name=folder.resolve().name, fingerprint=content, rows=rows, image_size=image_size)

    def build(entry: Path) -> None:
        splits, class_names = _read_folder(found)
        unpack(splits, entry, progress=progress)
        write_manifest(entry, content, Contents(class_names, skipped=0))

    return kept(cache_dir / f"encoded-{content[:32]}", look, build)


def _look(folder: Path, label_column: str | None) -> _Found:
    """Which shards of a folder are read, and which columns of them.

    Raises:
        ValueError: the folder, a shard or its columns are not as they must be.
    """
    groups = find_shards(folder)
    train = groups.pop(TRAIN)
    columns = read_columns(train, label_column)
    test = labelled(groups, columns)
    check_complete(test)
    read_columns([train[0], *test], label_column)
    return _Found({TRAIN: train, "test": test}, columns)


def _read_folder(found: _Found) -> tuple[dict[str, EncodedRows], tuple[str, ...]]:
    """All encoded images of a folder, by split, and what its classes are called."""
    targets, class_names = read_targets(found.splits, found.columns)
    splits = {
        split: EncodedRows(
            sum(len(targets[path]) for path in paths),
            chain.from_iterable(_read_rows(path, found.columns.image, targets[path]) for path in paths),
        )
        for split, paths in found.splits.items()
    }
    return splits, class_names


def _read_rows(path: Path, image: str, targets: Int64[np.ndarray, " n"]) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    with readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
        for batch in shard.iter_batches(BATCH_ROWS, columns=[image]):
            column = batch.column(0)
            encoded = (column.field("bytes") if pa.types.is_struct(column.type) else column).to_pylist()
            yield Rows(encoded, targets[first : first + len(encoded)], partial(_place, shown(path), first))
            first += len(encoded)


def _place(shard: str, first: int, row: int) -> str:
    return f"{shard}, row {first + row}"
