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
from collections.abc import Sequence
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
        self._image_shape = image_shape
        self._targets_path = folder / f"{split}-targets.npy"
        self._targets: list[Int64[np.ndarray, " b"]] = []
        self._file = (folder / f"{split}-images.npy").open("w+b")
        self._header_bytes = _write_header(self._file, (0, *image_shape))

    def append(self, images: UInt8[np.ndarray, "b h w c"], targets: Int64[np.ndarray, " b"]) -> None:
        """Write these images after those before them."""
        assert images.dtype == np.uint8, images.dtype
        assert images.shape == (len(targets), *self._image_shape), images.shape
        self._file.write(np.ascontiguousarray(images).data)
        self._targets.append(targets.astype(np.int64))

    def close(self) -> None:
        """Complete the files and have them on the disk."""
        targets = np.concatenate([np.empty(0, np.int64), *self._targets])
        self._file.seek(0)
        # NumPy pads its header so that the first axis can grow in place.
        assert _write_header(self._file, (len(targets), *self._image_shape)) == self._header_bytes
        _flush(self._file)
        self._file.close()
        with self._targets_path.open("w+b") as file:
            np.save(file, targets, allow_pickle=False)
            _flush(file)

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()


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
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["fingerprint"] != fingerprint:
            raise DamagedEntryError(f"{folder / MANIFEST} is of another entry")
        names = tuple(str(class_name) for class_name in manifest["class_names"])
        train, test = (_open_split(folder, split, manifest["shapes"], len(names)) for split in SPLITS)
        return ImageData(name, train, test, names, fingerprint, int(manifest["skipped"]))
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
    images = _map(folder / f"{split}-images.npy", shapes, np.uint8)
    targets = np.array(_map(folder / f"{split}-targets.npy", shapes, np.int64))
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
        raise DamagedEntryError(f"{folder}: a target of {split} is not one of {num_classes} classes")
    targets.flags.writeable = False
    return ImageSplit(images, targets)


def _map(path: Path, shapes: dict[str, Any], dtype: type[np.generic]) -> np.ndarray:
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
