"""A folder of Parquet shards in the Hugging Face hub's image layout: which files are of which split, and their images.

`labels` says what is in them; `once` decodes their images into the cache, or copies them there as they are. A row of a
shard can only be had with its whole row group, so a random image of a photograph-sized data set costs a hundred:
milliseconds, where a seek in a plain file costs some ten microseconds. Hence the copy for decoding on demand.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from infer2train.data.cache import FORMAT, DamagedEntryError, Entry, kept
from infer2train.data.fingerprints import fingerprint
from infer2train.data.images import DataError, DataSet, EncodedData, EncodedImages, EncodedSplit
from infer2train.data.labels import has_labels, read_columns, read_targets, readable, shown
from infer2train.data.once import BATCH_ROWS, SPLITS, Layout, Rows, unpack

SPLIT_FOLDERS = {"train": ("train",), "test": ("test",), "valid": ("validation", "valid"), "val": ("val",)}
"""Where shards are, by the first letters of their names: files whose names start with a key, or all files of a folder
with one of these names. Those to test on are in the order of preference."""
_PART = re.compile(r"(.*)-(\d+)-of-(\d+)(-[0-9a-f]{16})?$")
"""Shards that say how many there are; the hub's older ones end in a fingerprint, another in each."""


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of "train" and of all that may be tested on, in the order of preference, each sorted.

    A shard's split is what its name starts with or, where the folder holds no shard itself, the name of the folder in
    it that it is in: see `SPLIT_FOLDERS`. Others are not used.
    """
    found = _shards_in(folder)
    if found:
        splits = {split: [path for path in found if _split_of(path) == split] for split in SPLIT_FOLDERS}
    else:
        splits = {
            split: [*chain(*(_shards_in(folder / name) for name in SPLIT_FOLDERS[split]))] for split in SPLIT_FOLDERS
        }
    usable = [*chain(*splits.values())]
    if not (found or usable):
        below = {path.parent for path in folder.glob("*/*.parquet")}
        below |= {path.parent.parent for path in folder.glob("*/train/*.parquet")}
        remedy = "name a folder of train*.parquet and test*.parquet, or of train/CLASS/*.jpg and test/CLASS/*.jpg"
        remedy = f"there are some in {min(below)}, name that" if below else remedy
        raise ValueError(f"a data folder must hold Parquet shards: got none in {folder}; {remedy}")
    has_train = bool(splits["train"])
    if not has_train or len(usable) == len(splits["train"]):
        split, wanted = ("test", "test*, validation* or val*") if has_train else ("train", "train*")
        names = ", ".join(shown(path) for path in (found or usable)[:4])
        raise ValueError(
            f"a data folder must hold {split} shards: got {names} in {folder}; rename or add {wanted}.parquet"
        )
    return {split: shards for split, shards in splits.items() if shards}


class Shards(Layout):
    """The shards of a data set: a `DataError` if one or its columns are not as they must be, or if some are missing.

    Args:
        name: of the data set.
        groups: the shards of "train" and of all that may be tested on, in the order of preference.
        label_column: holds the labels. Default: found by name and feature, as by `labels`.
    """

    def __init__(self, name: str, groups: Mapping[str, list[Path]], label_column: str | None = None) -> None:
        self.name = name
        train = groups["train"]
        _check_complete(train)
        self._columns = read_columns(train, label_column)
        test = _labelled([shards for split, shards in groups.items() if split != "train"], self._columns.label)
        _check_complete(test)
        read_columns([train[0], *test], label_column)
        self._splits = {"train": train, "test": test}

    def fingerprint(self, cache_dir: Path, **options: object) -> str:
        read = {"layout": "parquet", "format": FORMAT, "label": self._columns.label}
        training = [shown(path) for path in self._splits["train"]]
        return fingerprint([*chain(*self._splits.values())], {**read, "train": training, **options}, cache_dir)

    def rows(self) -> tuple[dict[str, Rows], tuple[str, ...]]:
        targets, class_names = read_targets(self._splits, self._columns)
        rows = {
            split: Rows(
                np.concatenate([targets[path] for path in paths]), self._batches(paths), _Places.of(paths).place
            )
            for split, paths in self._splits.items()
        }
        return rows, class_names

    def on_demand(self, cache_dir: Path, *, image_size: int | None, progress: bool) -> EncodedData:
        content = self.fingerprint(cache_dir, encoded=True)

        def look(entry: Entry) -> EncodedData:
            train, test = (
                EncodedSplit(_open(entry, split, self._splits[split]), entry.targets(split), image_size)
                for split in SPLITS
            )
            return DataSet(self.name, train, test, entry.contents.class_names, content)

        place = cache_dir / f"encoded-{content[:32]}"
        return kept(place, content, look, lambda folder: unpack(self, folder, progress))

    def _batches(self, paths: Sequence[Path]) -> Iterator[list[bytes | None]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in paths:
            with readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
                for batch in shard.iter_batches(BATCH_ROWS, columns=[self._columns.image]):
                    column = batch.column(0)
                    yield (column.field("bytes") if pa.types.is_struct(column.type) else column).to_pylist()


@dataclass(frozen=True)
class _Places:
    """Names of shards, and the ids after the last one of each."""

    shards: tuple[str, ...]
    ends: Int64[np.ndarray, " s"]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "_Places":
        return cls(tuple(shown(path) for path in paths), np.cumsum([_count_rows(path) for path in paths]))

    def place(self, number: int) -> str:
        """Shard and row of an image."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        return f"{self.shards[shard]}, row {number - (int(self.ends[shard - 1]) if shard else 0)}"


@dataclass(frozen=True)
class UnpackedImages(EncodedImages):
    """The images of one split in one file: it, where the first one starts, where each ends from there on (bytes)."""

    path: Path
    start: int
    ends: Int64[np.ndarray, " n"]
    places: _Places

    def encoded(self, number: int) -> bytes | None:
        first, end = (int(self.ends[number - 1]) if number else 0), int(self.ends[number])
        with self.path.open("rb") as file:
            file.seek(self.start + first)
            return file.read(end - first) or None

    def place(self, number: int) -> str:
        return self.places.place(number)


def _open(entry: Entry, split: str, paths: Sequence[Path]) -> UnpackedImages:
    contents = entry.array(f"{split}-encoded", np.uint8)
    ends = np.array(entry.array(f"{split}-ends", np.int64))
    if len(ends) and (ends[-1] != len(contents) or (np.diff(ends, prepend=0) < 0).any()):
        raise DamagedEntryError(f"{entry.folder}: the images of {split} do not fill their file")
    path = entry.folder.absolute() / f"{split}-encoded.npy"
    return UnpackedImages(path, contents.offset, ends, _Places.of(paths))


def _labelled(groups: Sequence[list[Path]], label: str) -> list[Path]:
    """The first of these groups of shards that has labels; a warning tells which ones have none."""
    without: list[Path] = []
    for shards in groups:
        is_empty = not any(_count_rows(path) for path in shards)  # which is said where the rows are read
        if is_empty or any(has_labels(path, label) for path in shards):
            if without:
                warnings.warn(
                    f"{shown(without[0])} has no labels (column {label!r} is not there, or has nothing but null, -1 or "
                    f"empty strings); {shown(shards[0])} is the test set",
                    RuntimeWarning,
                )
            return shards
        without += shards
    raise DataError(
        f"images to test on must have labels: got {', '.join(shown(path) for path in without[:4])} in "
        f"{without[0].parent}, in which column {label!r} is not there, or has nothing but null, -1 or empty strings; "
        "add validation*.parquet with labels"
    )


def _check_complete(shards: Sequence[Path]) -> None:
    """Refuse a part of a split that says of itself how many shards it has: how many are missing, and the first."""
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for path in shards:
        if match := _PART.match(path.stem):
            parts.setdefault((match[1], int(match[3])), {})[int(match[2])] = "-*" if match[4] else ""
    for (stem, total), present in parts.items():
        if missing := sorted(set(range(total)) - present.keys()):
            raise DataError(
                f"all shards of a split must be there: {shards[0].parent} lacks {len(missing)} of {total}, the first "
                f"{stem}-{missing[0]:05d}-of-{total:05d}{next(iter(present.values()))}.parquet; download the rest"
            )


def _count_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    with readable(path):
        return int(pq.read_metadata(path).num_rows)


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _split_of(path: Path) -> str | None:
    return next((split for split in SPLIT_FOLDERS if path.name.lower().startswith(split)), None)
