"""One image file a sample, in a folder for each class: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg.

ImageNet's usual layout. The folders of a split are the classes, and whatever is below one of them, however deep, is of
that class. A file is an image if its suffix says so; what is hidden (a leading dot) is not looked at, links are
followed. Images are sorted by name within each folder, so that ids do not depend on the disk; a warning counts the
files that are passed over.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from infer2train.data.cache import FORMAT
from infer2train.data.digest import digest
from infer2train.data.images import DataError, DataSet, EncodedData, EncodedImages, EncodedSplit
from infer2train.data.once import BATCH_ROWS, Layout, Rows
from infer2train.settings import is_utf8

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of image files, in small or capital letters: those of the formats that `decoding` reads."""
TEST_FOLDERS = ("test", "validation", "valid", "val")
"""In the order of preference."""


@dataclass(frozen=True)
class FolderImages(EncodedImages):
    """The image files of one split.

    Args:
        folder: of the split.
        class_names: names of its folders.
        targets: which of these each file is in.
        names: of the files, with the folders between the class and them; as bytes, which are a tenth of a list of
            paths when they go to another process.
    """

    folder: Path
    class_names: tuple[str, ...]
    targets: Int64[np.ndarray, " n"]
    names: Shaped[np.ndarray, " n"]

    def encoded(self, number: int) -> bytes | None:
        return Path(self.place(number)).read_bytes()

    def place(self, number: int) -> str:
        class_name = self.class_names[int(self.targets[number])]
        return str(self.folder / class_name / os.fsdecode(bytes(self.names[number])))


def has_class_folders(root: Path) -> bool:
    """Whether a folder has this layout rather than that of shards; a `DataError` if it has both."""
    train = root / "train"
    has_shards = any(train.glob("*.parquet"))
    if not train.is_dir() or (has_shards and not _subfolders(train)):
        return False
    if has_shards or any(root.glob("*.parquet")):
        raise DataError(
            f"a data folder must hold Parquet shards or class folders: got both in {root}; name a folder with one of "
            "them"
        )
    return True


class ClassFolders(Layout):
    """A folder of class folders: train/CLASS and test/CLASS; without test, validation, valid or val.

    Its fingerprint covers names, sizes and times of change of the files, and the bytes of a few of each split (as
    `digest` has them), not of all: a folder of a million images is listed in seconds. A `DataError` says which split or
    class has no images, which class the training has not, and which image is no file.
    """

    def __init__(self, root: Path) -> None:
        root = root.absolute()  # other processes may be elsewhere
        self.name = root.resolve().name
        self._digest = hashlib.sha256(json.dumps({"layout": "class folders"}).encode())
        self._passed_over: Counter[str] = Counter()
        self._class_names = tuple(_names_of_classes(root / "train"))
        test_folder = _test_folder(root, self._class_names)
        self._splits = {"train": self._list(root / "train"), "test": self._list(test_folder)}
        if self._passed_over:
            warnings.warn(
                f"files of {root} that are passed over: {_counted(self._passed_over)} (images are "
                f"{' '.join(SUFFIXES)}, in a folder for each class)",
                RuntimeWarning,
            )

    def fingerprint(self, cache_dir: Path, **options: object) -> str:
        everything = {"format": FORMAT, "files": self._digest.hexdigest(), **options}
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()

    def rows(self) -> tuple[dict[str, Rows], tuple[str, ...]]:
        rows = {name: Rows(split.targets, _batches(split), split.place) for name, split in self._splits.items()}
        return rows, self._class_names

    def on_demand(self, cache_dir: Path, *, image_size: int | None, progress: bool) -> EncodedData:
        train, test = (EncodedSplit(split.images, split.targets, image_size) for split in self._splits.values())
        return DataSet(self.name, train, test, self._class_names, self._digest.hexdigest())

    def _list(self, folder: Path) -> EncodedSplit:
        """The images of a split; their names, sizes and times, and the bytes of a few, go into the digest."""
        found = _names_of_classes(folder)
        if unknown := sorted(set(found) - set(self._class_names)):
            raise DataError(
                f"every class of {folder.name} must be one of train: got {', '.join(unknown[:4])} in {folder}, which "
                f"train has not ({len(unknown)} such classes); move or remove them"
            )
        loose = (_kind(entry.name) for entry in _visible(folder) if not entry.is_dir())
        self._passed_over.update(f"{kind} in no class folder" for kind in loose)
        names = {
            target: self._images_of(folder / name) for target, name in enumerate(self._class_names) if name in found
        }
        targets = np.repeat(np.array([*names], np.int64), [len(files) for files in names.values()])
        files = np.array([name for files in names.values() for name in files])
        split = EncodedSplit(FolderImages(folder, self._class_names, targets, files), targets)
        self._digest.update(digest(split).encode())
        return split

    def _images_of(self, folder: Path) -> list[bytes]:
        """The names of a class's images, below its folder."""
        names, others = [], Counter[str]()
        for name, status in _files(folder, "", (), others):
            names.append(os.fsencode(name))
            line = f"{folder.parent.name}/{folder.name}/{status.st_size}/{status.st_mtime_ns}/"
            self._digest.update(os.fsencode(line) + names[-1])
        if not names:
            raise DataError(
                f"every class folder must hold images: got {f'only {_counted(others)}' if others else 'none'} in "
                f"{folder} ({' '.join(SUFFIXES)}); remove it, or move its images there"
            )
        self._passed_over += others
        return names


def _batches(split: EncodedSplit) -> Iterator[list[bytes | None]]:
    for start in range(0, len(split), BATCH_ROWS):
        yield [split.encoded(row) for row in range(start, min(start + BATCH_ROWS, len(split)))]


def _test_folder(root: Path, class_names: tuple[str, ...]) -> Path:
    """The first of the folders to test on in which there are classes of the training."""
    found = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not found:
        raise DataError(
            f"a data folder must hold images to test on beside train: got none in {root}; add "
            f"{' or '.join(TEST_FOLDERS)}, with one folder for each class"
        )
    chosen = next((folder for folder in found if not set(_subfolders(folder)).isdisjoint(class_names)), found[0])
    if chosen != found[0]:
        warnings.warn(
            f"the images of {found[0]} have no labels (no folder of a class that train has); those of {chosen} are the "
            "test set",
            RuntimeWarning,
        )
    return chosen


def _names_of_classes(folder: Path) -> list[str]:
    if names := _subfolders(folder):
        for name in names:
            if not is_utf8(name):
                raise DataError(
                    f"a class is called as its folder, in UTF-8: got {os.fsencode(name)!r} in {folder}; rename it"
                )
        return names
    raise DataError(
        f"{folder.name} must hold one folder for each class: got none in {folder}; move the images of each class to "
        f"{folder}/CLASS"
    )


def _files(
    folder: Path, before: str, above: tuple[tuple[int, int], ...], passed_over: Counter[str]
) -> Iterator[tuple[str, os.stat_result]]:
    """The images below a folder, sorted by name within each folder: their names from it on, and their status.

    `before` is what names start with (slashes on every system, so that the fingerprint is the same everywhere), `above`
    the folders on the way, by device and inode; `passed_over` grows by the other files, counted by suffix.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"folders must not hold themselves: {folder} links to one that it is in; remove that link")
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _files(folder / entry.name, f"{before}{entry.name}/", (*above, here), passed_over)
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


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _kind(name: str) -> str:
    return Path(name).suffix.lower() or "without a suffix"


def _counted(files: Counter[str]) -> str:
    return ", ".join(f"{num} {kind}" for kind, num in sorted(files.items()))
