"""Which data sets there are, by name, and the two functions that load any of them.

A loader is `load(*, cache_dir: Path, progress: bool) -> ImageData`: one function and one entry in `DATA` add a data
set. Data sets of the Hugging Face hub and folders of Parquet shards or of class folders need no entry. Loaders import
what they need (pyarrow, pooch, datasets) when they run, so this module costs nothing to import.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infer2train.data.images import EncodedData, ImageData
from infer2train.settings import resolve, unknown

if TYPE_CHECKING:
    from infer2train.data.once import Layout

DATA: dict[str, str] = {
    "digits": "infer2train.data.digits:load",
    "digits-half": "infer2train.data.digits:load_half",
    "cifar10": "infer2train.data.cifar10:load",
}
"""Data sets with a name of their own, as "module:attribute"."""
NOT_DOWNLOADED = "imagenet"
"""What the ImageNet regime asks for until it is told where the images are: their owners let no program fetch them."""


def load_data(
    name: str,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    label_column: str | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: bool = True,
) -> ImageData:
    """A data set, every image decoded once.

    Args:
        name: a key of `DATA`; else an existing folder, of Parquet shards in the hub's image layouts or of class
            folders (train/CLASS/*.jpg and test/CLASS/*.jpg); else a data set of the Hugging Face hub, such as
            `uoft-cs/cifar10`. Write `./cifar10` for a folder that is called like a key.
        cache_dir: where downloads and decoded arrays are kept (height x width x 3 bytes an image); made if it does not
            exist.
        image_size: height and width in pixels to which images are resized (shorter side) and centre cropped. Default:
            as stored, and then all must have one size.
        label_column: of Parquet shards, where the labels are. Default: found by name and feature.
        on_bad_image: an image that cannot be decoded is an error, or is left out and counted.
        progress: show progress on standard error.

    Raises:
        ValueError: there is no such data, or it is not as it must be; it names the file and the remedy.

    Example:
        >>> data = load_data("digits", cache_dir=default_cache_dir())
        >>> len(data.train), len(data.test)
        (200, 1597)
    """
    if name in DATA:
        if image_size is not None:
            raise ValueError(
                f"--image-size resizes the images of a folder: got {image_size} for {name!r}, whose images have one "
                "size already; leave --image-size out"
            )
        _check_label_column(label_column, name)
        load: Callable[..., ImageData] = resolve(DATA[name])
        return load(cache_dir=cache_dir, progress=progress)
    from infer2train.data.once import decoded

    layout = _layout(name, cache_dir, image_size, label_column, progress)
    return decoded(layout, cache_dir, image_size=image_size, on_bad_image=on_bad_image, progress=progress)


def load_encoded(
    name: str,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    label_column: str | None = None,
    progress: bool = True,
) -> EncodedData:
    """A data set whose images are decoded on demand, when they are first looked at; as `load_data` but for these.

    Args:
        name: none of `DATA`, which are decoded already.
        cache_dir: where Parquet shards are unpacked, image by image and as they are; class folders need none.
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.
    """
    if name in DATA:
        raise ValueError(
            f"--decode on-demand is for folders of images: got {name!r}, which has them decoded already; leave "
            "--decode out"
        )
    layout = _layout(name, cache_dir, image_size, label_column, progress)
    return layout.on_demand(cache_dir, image_size=image_size, progress=progress)


def is_gone(name: str) -> bool:
    """Whether a name is that of no data set of its own and of nothing that exists here: a folder that was moved, or a
    data set of the hub.

    Example:
        >>> is_gone("digits"), is_gone("/no/such/folder")
        (False, True)
    """
    return name not in DATA and not Path(name).expanduser().exists()


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


def _layout(given: str, cache_dir: Path, image_size: int | None, label_column: str | None, progress: bool) -> "Layout":
    """The images of a folder, or of a data set of the hub."""
    from infer2train.data import class_folders, hub, parquet
    from infer2train.data.once import check_image_size

    check_image_size(image_size)
    folder = Path(given).expanduser()
    if folder.is_file():
        raise ValueError(f"data must be a known name or a folder: got the file {given}; name its folder")
    if folder.is_dir():
        if not class_folders.has_class_folders(folder):
            return parquet.Shards(folder.resolve().name, parquet.find_shards(folder), label_column)
        _check_label_column(label_column, given)
        return class_folders.ClassFolders(folder)
    if hub.NAME.fullmatch(given) and given[0] != ".":
        return parquet.Shards(given, hub.shards(given, cache_dir, progress), label_column)
    if given == NOT_DOWNLOADED:
        raise ValueError(
            "ImageNet must be fetched by hand, from https://image-net.org: got no folder of it; pass --data FOLDER, "
            "with class folders (train/CLASS/*.JPEG and val/CLASS/*.JPEG) or Parquet shards"
        )
    raise ValueError(
        f"{unknown('data set', given, DATA)}; a folder of Parquet shards or class folders must exist, and this one "
        "does not; a data set of the Hugging Face hub is named OWNER/NAME"
    )


def _check_label_column(label_column: str | None, data: str) -> None:
    if label_column is not None:
        raise ValueError(
            f"--label-column names a column of Parquet shards: got {label_column} for {data!r}, which has none; leave "
            "--label-column out"
        )
