"""One image file a sample, in a folder for each class: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg.

ImageNet's usual layout. The folders of a split are the classes, and whatever is below one of them, however deep, is of
that class. `class_files` lists the images, sorted by name so that ids do not depend on the disk, and counts the files
that are passed over, of which a warning tells.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped

from infer2train.data.cache import cached
from infer2train.data.class_files import SUFFIXES, image_files, loose_files, subfolders
from infer2train.data.decoding import VERSION
from infer2train.data.encoded import EncodedData, EncodedImages, EncodedSplit
from infer2train.data.entry import FORMAT, Contents
from infer2train.data.images import DataError, ImageData
from infer2train.data.once import BATCH_ROWS, EncodedRows, Rows, check_image_size, decode_splits

TRAIN_FOLDER = "train"
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

    def __len__(self) -> int:
        return len(self.names)

    def path(self, sample_id: int) -> Path:
        """The file of a sample."""
        return self.folder / self.class_names[int(self.targets[sample_id])] / os.fsdecode(bytes(self.names[sample_id]))

    def encoded(self, sample_id: int) -> bytes | None:
        return self.path(sample_id).read_bytes()

    def place(self, sample_id: int) -> str:
        return str(self.path(sample_id))


def has_class_folders(root: Path) -> bool:
    """Whether a folder has this layout, rather than that of shards.

    Raises:
        DataError: it has both.
    """
    train = root / TRAIN_FOLDER
    if not train.is_dir():
        return False
    has_shards = any(train.glob("*.parquet"))
    if has_shards and not subfolders(train):
        return False
    if has_shards or any(root.glob("*.parquet")):
        raise DataError(
            f"a data folder must hold Parquet shards or class folders: got both in {root}; name a folder with one of "
            "them"
        )
    return True


def load_encoded(root: Path, *, image_size: int | None = None) -> EncodedData:
    """The images of class folders, to be decoded on demand.

    The fingerprint covers names, sizes and times of change of the files, not their bytes: a folder of a million images
    is listed in seconds.

    Args:
        root: holds train/CLASS and test/CLASS; without test, validation, valid or val.
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.

    Raises:
        ValueError: a split or a class has no images, the test has a class that the training has not, or an image is no
            file; which, and the remedy.
    """
    check_image_size(image_size)
    root = root.absolute()  # other processes may be elsewhere
    digest = hashlib.sha256(json.dumps({"layout": "class folders"}).encode())
    class_names = tuple(_names_of_classes(root / TRAIN_FOLDER))
    test_folder = _test_folder(root, class_names)
    passed_over: Counter[str] = Counter()
    train = _list(root / TRAIN_FOLDER, class_names, digest, passed_over)
    test = _list(test_folder, class_names, digest, passed_over)
    if passed_over:
        warnings.warn(
            f"files of {root} that are passed over: {_counted(passed_over)} (images are {' '.join(SUFFIXES)}, in a "
            "folder for each class)",
            RuntimeWarning,
        )
    return EncodedData(
        root.resolve().name,
        EncodedSplit(train, train.targets, image_size),
        EncodedSplit(test, test.targets, image_size),
        class_names,
        digest.hexdigest(),
    )


def load_folder(
    root: Path,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: bool = True,
) -> ImageData:
    """The images of class folders as RGB uint8, from the cache if files of these names, sizes and times were decoded.

    Args:
        root: as for `load_encoded`.
        cache_dir: of the decoded arrays, height x width x 3 bytes an image; made if it does not exist.
        image_size: height and width in pixels, as for `decoding.decode`. Default: as stored, all of one size.
        on_bad_image: an image that cannot be decoded is an error, or is left out and counted in `skipped`.
        progress: show progress on standard error while decoding.

    Raises:
        ValueError: as for `load_encoded`, or an image is not as it must be.
    """
    data = load_encoded(root, image_size=image_size)
    options = {"format": FORMAT, "decoding": VERSION, "files": data.fingerprint}
    options |= {"image_size": image_size, "on_bad_image": on_bad_image}
    fingerprint = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()

    def build(entry: Path) -> Contents:
        splits = {"train": _rows(data.train), "test": _rows(data.test)}
        skip = on_bad_image == "skip"
        skipped = decode_splits(splits, entry, image_size=image_size, skip=skip, progress=progress)
        return Contents(data.class_names, skipped)

    return cached(cache_dir, name=data.name, fingerprint=fingerprint, build=build)


def _rows(split: EncodedSplit) -> EncodedRows:
    return EncodedRows(len(split), (_batch(split, start) for start in range(0, len(split), BATCH_ROWS)))


def _batch(split: EncodedSplit, start: int) -> Rows:
    targets = split.targets[start : start + BATCH_ROWS]
    encoded = [split.encoded(start + row) for row in range(len(targets))]
    return Rows(encoded, targets, lambda row: split.images.place(start + row))


def _test_folder(root: Path, class_names: tuple[str, ...]) -> Path:
    """The first of the folders to test on in which there are classes of the training."""
    found = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not found:
        raise DataError(
            f"a data folder must hold images to test on beside {TRAIN_FOLDER}: got none in {root}; add "
            f"{' or '.join(TEST_FOLDERS)}, with one folder for each class"
        )
    labelled = [folder for folder in found if not set(subfolders(folder)).isdisjoint(class_names)]
    if not labelled or labelled[0] == found[0]:
        return found[0]
    warnings.warn(
        f"the images of {found[0]} have no labels (no folder of a class that {TRAIN_FOLDER} has); those of "
        f"{labelled[0]} are the test set",
        RuntimeWarning,
    )
    return labelled[0]


def _names_of_classes(folder: Path) -> list[str]:
    names = subfolders(folder)
    if not names:
        raise DataError(
            f"{folder.name} must hold one folder for each class: got none in {folder}; move the images of each class "
            f"to {folder}/CLASS"
        )
    return names


def _list(
    folder: Path, class_names: tuple[str, ...], digest: "hashlib._Hash", passed_over: Counter[str]
) -> FolderImages:
    """The images of a split; their names, sizes and times go into the digest."""
    found = _names_of_classes(folder)
    if unknown := sorted(set(found) - set(class_names)):
        raise DataError(
            f"every class of {folder.name} must be one of {TRAIN_FOLDER}: got {', '.join(unknown[:4])} in {folder}, "
            f"which {TRAIN_FOLDER} has not ({len(unknown)} such classes); move or remove them"
        )
    passed_over += loose_files(folder)
    names: list[bytes] = []
    targets: list[int] = []
    for target, class_name in enumerate(class_names):
        if class_name in found:
            files = _images_of(folder / class_name, digest, passed_over)
            names += files
            targets += [target] * len(files)
    return FolderImages(folder, class_names, np.array(targets, np.int64), np.array(names))


def _images_of(folder: Path, digest: "hashlib._Hash", passed_over: Counter[str]) -> list[bytes]:
    """The names of a class's images, below its folder."""
    names, others = [], Counter[str]()
    for name, status in image_files(folder, others):
        names.append(os.fsencode(name))
        digest.update(f"{folder.parent.name}/{folder.name}/{status.st_size}/{status.st_mtime_ns}/".encode() + names[-1])
    if not names:
        got = f"only {_counted(others)}" if others else "none"
        raise DataError(
            f"every class folder must hold images: got {got} in {folder} ({' '.join(SUFFIXES)}); remove it, or move "
            "its images there"
        )
    passed_over += others
    return names


def _counted(files: Counter[str]) -> str:
    return ", ".join(f"{num} {kind}" for kind, num in sorted(files.items()))
