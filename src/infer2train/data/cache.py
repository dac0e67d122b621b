"""The cache: each data set is decoded or unpacked once, then mapped by whoever asks, from any process.

An entry is a folder of .npy arrays and a manifest with their shapes, named by the fingerprint of its content, so it
never goes stale. It is built in a folder of its own, brought to the disk and renamed into place: a kill leaves nothing
half-made, and of two processes that race one wins and both have a whole entry. Sizes and shapes are checked on opening,
and targets against the classes; a flipped bit in a pixel is not noticed.
"""

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64

T = TypeVar("T")

FORMAT = 1
"""Goes up when what is written changes, so that older entries are made again."""
MANIFEST = "manifest.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFINISHED = ".unfinished-"
_ABANDONED_SECONDS = 24 * 3600.0
"""A folder in the making that nobody wrote to for so long belongs to a process that was killed."""


class DamagedEntryError(Exception):
    """A folder of the cache is not a whole entry; it can be made again."""


@dataclass(frozen=True)
class Contents:
    """What a builder of an entry says about the arrays that it wrote: names of classes, and images left out."""

    class_names: tuple[str, ...]
    skipped: int = 0


@dataclass(frozen=True)
class Entry:
    """An entry whose manifest was read."""

    folder: Path
    contents: Contents
    shapes: dict[str, list[int]]

    def array(self, name: str, dtype: type[np.generic]) -> np.memmap:
        """A read-only map of an array, once it is known to be what the manifest says."""
        path = self.folder / f"{name}.npy"
        array: np.memmap = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = (self.shapes[path.name], np.dtype(dtype), array.offset + array.nbytes)
        if ([*array.shape], array.dtype, path.stat().st_size) != expected:
            raise DamagedEntryError(f"{path} does not hold the {expected[0]} of its manifest")
        return array

    def targets(self, split: str) -> Int64[np.ndarray, " n"]:
        """The targets of a split, in memory and read-only, once each is known to be a class."""
        targets = np.array(self.array(f"{split}-targets", np.int64))
        if len(targets) and not 0 <= targets.min() <= targets.max() < len(self.contents.class_names):
            raise DamagedEntryError(f"{self.folder}: a target of {split} is not one of the classes")
        targets.flags.writeable = False
        return targets


def kept(place: Path, fingerprint: str, look: Callable[[Entry], T], build: Callable[[Path], Contents]) -> T:
    """What an entry holds; the entry is built first if it is not there or if it is damaged.

    Args:
        place: of the entry. Its folder is made if it does not exist.
        fingerprint: hexadecimal; of the content and of everything that decides how it is read.
        look: makes of an entry what is wanted; may raise `DamagedEntryError`, `KeyError`, `OSError` or `ValueError`.
        build: writes arrays into the folder that it is given, with `growing_array`. Its errors propagate, and what it
            wrote is removed.

    Raises:
        OSError: the disk is full; which.
    """
    with contextlib.suppress(DamagedEntryError):
        return _opened(place, fingerprint, look)
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place.parent)
    folder = place.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    folder.mkdir()
    try:
        _write_manifest(folder, fingerprint, build(folder))
        _put_in_place(folder, place, lambda: _opened(place, fingerprint, look))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            f"a data set is kept decoded or unpacked in the cache: got '{error.strerror}' for {place.parent}; free "
            "space there, or pass --data-cache"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _opened(place, fingerprint, look)


@contextlib.contextmanager
def growing_array(path: Path) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes rows after rows to a .npy file, which is whole and on the disk at the end."""
    with path.open("w+b") as file:
        form: dict[str, Any] = {"fortran_order": False}
        num_rows = 0

        def append(rows: np.ndarray) -> None:
            nonlocal num_rows
            if "shape" not in form:
                form.update(descr=np.lib.format.dtype_to_descr(rows.dtype), shape=rows.shape)
                np.lib.format.write_array_header_1_0(file, form)
            assert rows.shape[1:] == form["shape"][1:], rows.shape
            file.write(np.ascontiguousarray(rows).data)
            num_rows += len(rows)

        yield append
        file.seek(0)
        # NumPy pads its header so that the first axis can grow in place.
        np.lib.format.write_array_header_1_0(file, {**form, "shape": (num_rows, *form["shape"][1:])})
        _flush(file)


def _opened(folder: Path, fingerprint: str, look: Callable[[Entry], T]) -> T:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["fingerprint"] != fingerprint:
            raise DamagedEntryError(f"{folder / MANIFEST} is of another entry")
        contents = Contents(tuple(str(name) for name in manifest["class_names"]), int(manifest["skipped"]))
        return look(Entry(folder, contents, manifest["shapes"]))
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DamagedEntryError(f"{folder}: {error!r}") from error


def _write_manifest(folder: Path, fingerprint: str, contents: Contents) -> None:
    """Complete an entry whose arrays are written; the last file to come."""
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "class_names": list(contents.class_names),
        "skipped": contents.skipped,
        "shapes": {path.name: np.load(path, mmap_mode="r").shape for path in sorted(folder.glob("*.npy"))},
    }
    with (folder / MANIFEST).open("w+b") as file:
        file.write(json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        _flush(file)
    _sync_folder(folder)


def _put_in_place(folder: Path, place: Path, look: Callable[[], object]) -> None:
    """Rename a finished folder to its place, unless another process put a whole entry there meanwhile."""
    while True:
        try:
            folder.rename(place)
            return _sync_folder(place.parent)
        except OSError:
            if not place.exists():
                raise
        try:
            look()
            return
        except DamagedEntryError:
            # Renamed first: its place is never half an entry, and one of two racers does it.
            aside = place.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
            with contextlib.suppress(FileNotFoundError):
                place.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(cache_dir: Path) -> None:
    for folder in cache_dir.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk, where the system can (Windows cannot open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush(file: BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
