"""Which data sets there are, by name, and the one function that loads any of them.

A loader is `load(*, cache_dir: Path, progress: bool) -> ImageData`: one function and one entry in `DATA` add a data
set. Any folder of Parquet shards or of class folders needs no entry. Loaders import what they need (scikit-learn,
pyarrow, pooch) when they run, so this module costs nothing to import.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from infer2train.data.encoded import EncodedData
from infer2train.data.images import ImageData
from infer2train.settings import resolve, unknown

DATA: dict[str, str] = {
    "digits": "infer2train.data.digits:load",
    "cifar10": "infer2train.data.cifar10:load",
}
"""Data sets with a name of their own, as "module:attribute"."""
NOT_DOWNLOADED = "imagenet"
"""What the ImageNet regime asks for until it is told where the images are: their owners let no program fetch them."""


def load_data(
    name_or_folder: str,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    label_column: str | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: bool = True,
) -> ImageData:
    """A data set of the catalogue, or a folder of images: every image decoded once.

    A folder holds Parquet shards in the Hugging Face hub's image layouts, or class folders: train/CLASS/*.jpg and
    test/CLASS/*.jpg. A name of the catalogue wins over a folder of the same name; write `./cifar10` for the folder.

    Args:
        name_or_folder: a key of `DATA`, or an existing folder.
        cache_dir: where downloads and decoded arrays are kept; made if it does not exist.
        image_size: height and width in pixels to which images of a folder are resized (shorter side) and centre
            cropped. Default: as stored, and then all must have one size.
        label_column: of Parquet shards, where the labels are. Default: found by name and feature.
        on_bad_image: an image of a folder that cannot be decoded is an error, or is left out and counted.
        progress: show progress on standard error.

    Raises:
        ValueError: neither a name nor a folder, or the data is not as it must be; it names the file and the remedy.

    Example:
        >>> data = load_data("digits", cache_dir=default_cache_dir())
        >>> len(data.train), len(data.test)
        (200, 1597)
    """
    if name_or_folder in DATA:
        if image_size is not None:
            raise ValueError(
                f"--image-size resizes the images of a folder: got {image_size} for "
                f"{name_or_folder!r}, whose images have one size already; leave --image-size out"
            )
        _check_label_column(label_column, name_or_folder)
        load: Callable[..., ImageData] = resolve(DATA[name_or_folder])
        return load(cache_dir=cache_dir, progress=progress)
    from infer2train.data import class_folders, parquet

    folder = _folder(name_or_folder)
    load_shards: Callable[..., ImageData] = partial(parquet.load_folder, label_column=label_column)
    has_classes = class_folders.has_class_folders(folder)
    if has_classes:
        _check_label_column(label_column, name_or_folder)
    load_folder = class_folders.load_folder if has_classes else load_shards
    return load_folder(folder, cache_dir=cache_dir, image_size=image_size, on_bad_image=on_bad_image, progress=progress)


def load_encoded(
    name_or_folder: str,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    label_column: str | None = None,
    progress: bool = True,
) -> EncodedData:
    """A folder of images that are decoded on demand.

    Args:
        name_or_folder: as for `load_data`; the data sets of the catalogue are decoded once.
        cache_dir: where Parquet shards are unpacked, image by image and as they are; class folders need none.
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.
        label_column: as for `load_data`.
        progress: show progress on standard error.

    Raises:
        ValueError: it is no such folder, or is not as it must be.
    """
    if name_or_folder in DATA:
        raise ValueError(
            f"--decode on-demand is for folders of images: got {name_or_folder!r}, which has them decoded already; "
            "leave --decode out"
        )
    from infer2train.data import class_folders, parquet

    folder = _folder(name_or_folder)
    if class_folders.has_class_folders(folder):
        _check_label_column(label_column, name_or_folder)
        return class_folders.load_encoded(folder, image_size=image_size)
    return parquet.load_encoded(
        folder, cache_dir=cache_dir, image_size=image_size, label_column=label_column, progress=progress
    )


def default_cache_dir() -> Path:
    """Where data is cached unless a run says otherwise: $INFER2TRAIN_CACHE, else the user's cache folder."""
    chosen = os.environ.get("INFER2TRAIN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        import pooch
    except ImportError:  # `make gpu` runs with what a CUDA image has
        return Path("~/.cache/infer2train").expanduser()
    return Path(pooch.os_cache("infer2train"))


def _check_label_column(label_column: str | None, data: str) -> None:
    if label_column is not None:
        raise ValueError(
            f"--label-column names a column of Parquet shards: got {label_column} for {data!r}, which has none; leave "
            "--label-column out"
        )


def _folder(given: str) -> Path:
    folder = Path(given).expanduser()
    if folder.is_file():
        raise ValueError(f"data must be a catalogue name or a folder: got the file {given}; name its folder")
    if given == NOT_DOWNLOADED and not folder.is_dir():
        raise ValueError(
            "ImageNet must be fetched by hand, from https://image-net.org: got no folder of it; pass --data FOLDER, "
            "with class folders (train/CLASS/*.JPEG and val/CLASS/*.JPEG) or Parquet shards"
        )
    if not folder.is_dir():
        raise ValueError(
            f"{unknown('data set', given, DATA)}; a folder of Parquet shards or class folders must exist, and this one "
            "does not"
        )
    return folder
