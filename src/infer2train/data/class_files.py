"""The files below a folder of a class: which are images, in an order of their own, and what is passed over.

`class_folders` makes samples of them. A file is an image if its suffix says so. Whatever is hidden (a leading dot) is
not looked at; links are followed.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from infer2train.data.images import DataError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of image files, in small or capital letters: those of the formats that `decoding` reads."""


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def loose_files(folder: Path) -> Counter[str]:
    """How many files of each kind a split's folder holds beside the folders of its classes."""
    files = (entry for entry in _visible(folder) if not entry.is_dir())
    return Counter(f"{_kind(entry.name)} in no class folder" for entry in files)


def image_files(folder: Path, passed_over: Counter[str]) -> Iterator[tuple[str, os.stat_result]]:
    """The images below a folder, sorted by name within each folder: their names from it on, and their status.

    Args:
        folder: of a class.
        passed_over: grows by the other files, counted by suffix.

    Raises:
        DataError: an image is no file, or a link leads back to where it is.
    """
    yield from _below(folder, "", (), passed_over)


def _below(
    folder: Path, before: str, above: tuple[tuple[int, int], ...], passed_over: Counter[str]
) -> Iterator[tuple[str, os.stat_result]]:
    """Those of `image_files` in one of the folders; `before` and `above`: names of those on the way, and what they are.

    Names are joined by a slash on every system, so that the fingerprint is the same everywhere.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"folders must not hold themselves: {folder} links to one that it is in; remove that link")
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _below(folder / entry.name, f"{before}{entry.name}/", (*above, here), passed_over)
        elif not entry.name.lower().endswith(SUFFIXES):
            passed_over[_kind(entry.name)] += 1
        elif not entry.is_file():
            raise DataError(
                f"images must be files, or links to files: {entry.path} is neither; remove it, or mend the link"
            )
        else:
            yield f"{before}{entry.name}", entry.stat()


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _kind(name: str) -> str:
    return Path(name).suffix.lower() or "without a suffix"
