"""The decoded cache: each data set is decoded once, then mapped by whoever asks, from any process.

An entry is named by the fingerprint of its content, so it never goes stale. It is built in a folder of its own, brought
to the disk and renamed into place: a kill leaves nothing half-made, and of two processes that race one wins and both
have a whole entry. What is inside an entry is `entry`'s business, what a fingerprint covers `fingerprints`'.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from infer2train.data.entry import Contents, DamagedEntryError, open_entry, sync_folder, write_manifest
from infer2train.data.images import ImageData

T = TypeVar("T")

_UNFINISHED = ".unfinished-"
_ABANDONED_SECONDS = 24 * 3600.0
"""A folder in the making that nobody wrote to for so long belongs to a process that was killed."""


def cached(cache_dir: Path, *, name: str, fingerprint: str, build: Callable[[Path], Contents]) -> ImageData:
    """The images of this fingerprint, decoded first if they are not there or if they are damaged.

    Args:
        cache_dir: made if it does not exist.
        name: of the data set, as the result carries it.
        fingerprint: hexadecimal; of the content and of everything that decides how it is decoded.
        build: writes both splits into the folder that it is given, with `SplitWriter`. Called in this process; its
            errors propagate, and what it wrote is removed.

    Example:
        >>> data = cached(cache_dir, name="mine", fingerprint=sha256, build=decode_into)   # doctest: +SKIP
    """
    return kept(
        cache_dir / f"images-{fingerprint[:32]}",
        lambda place: open_entry(place, name=name, fingerprint=fingerprint),
        lambda folder: write_manifest(folder, fingerprint, build(folder)),
    )


def kept(place: Path, look: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """What an entry holds; the entry is built first if it is not there or if it is damaged.

    Args:
        place: of the entry. Its folder is made if it does not exist.
        look: opens an entry; raises `DamagedEntryError`.
        build: writes an entry into the folder that it is given; see `cached`.
    """
    with contextlib.suppress(DamagedEntryError):
        return look(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place.parent)
    folder = place.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    folder.mkdir()
    try:
        build(folder)
        _put_in_place(folder, place, look)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return look(place)


def _put_in_place(folder: Path, place: Path, look: Callable[[Path], object]) -> None:
    """Rename a finished folder to its place, unless another process put a whole entry there meanwhile."""
    while True:
        try:
            folder.rename(place)
        except OSError:
            if not place.exists():
                raise
        else:
            sync_folder(place.parent)
            return
        try:
            look(place)
        except DamagedEntryError:
            _set_aside(place)
        else:
            return


def _set_aside(place: Path) -> None:
    """Remove a damaged entry by renaming it first: its place is never half an entry, and one of two racers does it."""
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
