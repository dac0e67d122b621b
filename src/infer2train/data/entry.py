"""One entry of the decoded cache on disk: a folder of .npy files and a manifest.

    manifest.json   format, fingerprint, class names, skipped images, and the shape of each array
    train-images.npy  train-targets.npy  test-images.npy  test-targets.npy

`SplitWriter` appends images as they are decoded, so a data set larger than memory can be written; `open_entry` maps
them. Sizes and shapes are checked on opening, and targets against the classes; a flipped bit in a pixel is not noticed.
How an entry gets its place, and who may use it, is `cache`'s business.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from infer2train.data.images import ImageData, ImageSplit

FORMAT = 1
"""Goes up when what is written changes, so that older entries are made again."""
SPLITS = ("train", "test")
MANIFEST = "manifest.json"


class DamagedEntryError(Exception):
    """A folder of the cache is not a whole entry; it can be made again."""


@dataclass(frozen=True)
class Contents:
    """What a builder of an entry says about the arrays that it wrote.

    Args:
        class_names: one a class.
        skipped: images left out because they could not be decoded.
    """

    class_names: tuple[str, ...]
    skipped: int


class SplitWriter:
    """Writes one split of an entry, a batch at a time; a context manager.

    Args:
        folder: of the entry, still in the making.
        split: "train" or "test".
        image_shape: (height, width, channels) of every image.
    """

    def __init__(self, folder: Path, split: str, image_shape: tuple[int, int, int]) -> None:
        assert split in SPLITS, split
        self._images = GrowingArray(folder / f"{split}-images.npy", image_shape)
        self._targets_path = folder / f"{split}-targets.npy"
        self._targets: list[Int64[np.ndarray, " b"]] = []

    def append(self, images: UInt8[np.ndarray, "b h w c"], targets: Int64[np.ndarray, " b"]) -> None:
        """Write these images after those before them."""
        assert len(images) == len(targets), (len(images), len(targets))
        self._images.append(images)
        self._targets.append(targets.astype(np.int64))

    def close(self) -> None:
        """Complete the files and have them on the disk."""
        self._images.close()
        save_array(self._targets_path, np.concatenate([np.empty(0, np.int64), *self._targets]))

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._images.abandon()


class GrowingArray:
    """A .npy file of uint8 that grows along its first axis.

    Args:
        path: of the file.
        row_shape: of the other axes.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...]) -> None:
        self._row_shape, self._num_rows = row_shape, 0
        self._file = path.open("w+b")
        self._header_bytes = _write_header(self._file, (0, *row_shape))

    def append(self, rows: UInt8[np.ndarray, "..."]) -> None:
        """Write these rows after those before them."""
        assert rows.dtype == np.uint8, rows.dtype
        assert rows.shape[1:] == self._row_shape, rows.shape
        self._file.write(np.ascontiguousarray(rows).data)
        self._num_rows += len(rows)

    def close(self) -> None:
        """Complete the file and have it on the disk."""
        self._file.seek(0)
        # NumPy pads its header so that the first axis can grow in place.
        assert _write_header(self._file, (self._num_rows, *self._row_shape)) == self._header_bytes
        _flush(self._file)
        self._file.close()

    def abandon(self) -> None:
        """Leave the file unfinished."""
        self._file.close()


def save_array(path: Path, array: Int64[np.ndarray, " n"]) -> None:
    """Write a whole .npy file and have it on the disk."""
    with path.open("w+b") as file:
        np.save(file, array, allow_pickle=False)
        _flush(file)


def write_manifest(folder: Path, fingerprint: str, contents: Contents) -> None:
    """Complete an entry whose arrays are written; the last file to come."""
    arrays = {path.name: list(np.load(path, mmap_mode="r").shape) for path in sorted(folder.glob("*.npy"))}
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "class_names": list(contents.class_names),
        "skipped": contents.skipped,
        "shapes": arrays,
    }
    with (folder / MANIFEST).open("w+b") as file:
        file.write(json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        _flush(file)
    sync_folder(folder)


def open_entry(folder: Path, *, name: str, fingerprint: str) -> ImageData:
    """Map an entry's arrays after checking that it is whole.

    Raises:
        DamagedEntryError: a file is missing or is not what the manifest says; which.
    """
    with opened(folder, fingerprint) as (contents, shapes):
        train, test = (_open_split(folder, split, shapes, len(contents.class_names)) for split in SPLITS)
        return ImageData(name, train, test, contents.class_names, fingerprint, contents.skipped)


@contextmanager
def opened(folder: Path, fingerprint: str) -> Iterator[tuple[Contents, dict[str, Any]]]:
    """What an entry's manifest says: its contents and the shape of each array, while these are looked at.

    Raises:
        DamagedEntryError: the manifest, or what is looked at, is missing or is not as it must be.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["fingerprint"] != fingerprint:
            raise DamagedEntryError(f"{folder / MANIFEST} is of another entry")
        names = tuple(str(class_name) for class_name in manifest["class_names"])
        yield Contents(names, int(manifest["skipped"])), manifest["shapes"]
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DamagedEntryError(f"{folder}: {error!r}") from error


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk, where the system can (Windows cannot open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open_split(folder: Path, split: str, shapes: dict[str, Any], num_classes: int) -> ImageSplit:
    images = map_array(folder / f"{split}-images.npy", shapes, np.uint8)
    return ImageSplit(images, open_targets(folder, split, shapes, num_classes))


def open_targets(folder: Path, split: str, shapes: dict[str, Any], num_classes: int) -> Int64[np.ndarray, " n"]:
    """The targets of a split, in memory and read-only.

    Raises:
        DamagedEntryError: one is no class.
    """
    targets = np.array(map_array(folder / f"{split}-targets.npy", shapes, np.int64))
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
        raise DamagedEntryError(f"{folder}: a target of {split} is not one of {num_classes} classes")
    targets.flags.writeable = False
    return targets


def map_array(path: Path, shapes: dict[str, Any], dtype: type[np.generic]) -> np.memmap:
    """A read-only map of an array, once its header and its file's size are known to be those of its shape."""
    shape = tuple(int(size) for size in shapes[path.name])
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    expected_bytes = offset + math.prod(shape) * np.dtype(dtype).itemsize
    if header != (shape, False, np.dtype(dtype)) or path.stat().st_size != expected_bytes:
        raise DamagedEntryError(f"{path} does not hold the {shape} of its manifest")
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


def _write_header(file: BufferedRandom, shape: Sequence[int]) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _flush(file: BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
