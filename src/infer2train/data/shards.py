"""A folder of Parquet shards in the Hugging Face hub's image layout: which files are of which split.

Whatever can be wrong with a folder, except its images, is found here and in `columns` and `labels` within milliseconds
and before anything is decoded. `parquet` decodes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infer2train.data.images import DataError

TRAIN = "train"
TEST_FOLDERS = {"test": ("test",), "valid": ("validation", "valid"), "val": ("val",)}
"""Where shards to test on are, by the first letters of their names, in the order of preference: files whose names start
with a key, or all files of a folder with one of these names."""

_PART = re.compile(r"(.*)-(\d+)-of-(\d+)$")


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of "train" and of all that may be tested on, in the order of preference, each sorted.

    A shard is for training if its name starts with `train`, and for the test if it starts with `test` or, without
    those, with `validation`, `valid` or `val`. Where the folder holds no shard itself, the folders `train`, `test`,
    `validation`, `valid` and `val` in it say so, whatever the shards in them are called. Others are not used.

    Raises:
        ValueError: there are no shards, a split has none, or some of the training's `…-of-00004` are missing.
    """
    found = _shards_in(folder)
    splits = _by_names(found) if found else _by_folders(folder)
    if not found and not any(splits.values()):
        raise ValueError(f"a data folder must hold Parquet shards: got none in {folder}; {_elsewhere(folder)}")
    tests = [path for name in TEST_FOLDERS for path in splits[name]]
    for split, shards, wanted in ((TRAIN, splits[TRAIN], "train*"), ("test", tests, "test*, validation* or val*")):
        if not shards:
            names = ", ".join(shown(path) for path in (found or splits[TRAIN] or tests)[:4])
            raise ValueError(
                f"a data folder must hold {split} shards: got {names} in {folder}; rename or add {wanted}.parquet"
            )
    check_complete(splits[TRAIN])
    return {name: shards for name, shards in splits.items() if shards}


def shown(path: Path) -> str:
    """What a shard is called in a message: its name, after that of its folder where only this tells its split."""
    return path.name if path.name.lower().startswith((TRAIN, *TEST_FOLDERS)) else f"{path.parent.name}/{path.name}"


def count_rows(path: Path) -> int:
    """How many rows a shard has.

    Raises:
        DataError: it is not a whole Parquet file.
    """
    import pyarrow.parquet as pq

    with readable(path):
        return int(pq.read_metadata(path).num_rows)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say which shard it is when pyarrow cannot read one.

    Raises:
        DataError: it cannot.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise DataError(f"shards must be whole Parquet files: {path} is not ({reason}); download it again") from error


def _by_names(shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Every shard under the first of the prefixes that its name starts with."""
    splits: dict[str, list[Path]] = {name: [] for name in (TRAIN, *TEST_FOLDERS)}
    for path in shards:
        prefix = next((name for name in splits if path.name.lower().startswith(name)), None)
        if prefix is not None:
            splits[prefix].append(path)
    return splits


def _by_folders(folder: Path) -> dict[str, list[Path]]:
    """The shards in the folders of this folder that are called like a split."""
    names = {TRAIN: (TRAIN,), **TEST_FOLDERS}
    return {split: [path for name in folders for path in _shards_in(folder / name)] for split, folders in names.items()}


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _elsewhere(folder: Path) -> str:
    """The remedy where a folder holds no shards: another one, if there are some below this one."""
    below = {path.parent for path in folder.glob("*/*.parquet")}
    below |= {path.parent.parent for path in folder.glob(f"*/{TRAIN}/*.parquet")}
    if below:
        return f"there are some in {min(below)}, name that"
    return "name a folder of train*.parquet and test*.parquet, or of train/CLASS/*.jpg and test/CLASS/*.jpg"


def check_complete(shards: Sequence[Path]) -> None:
    """Refuse a part of a split that says of itself how many shards it has.

    Raises:
        DataError: some are missing; how many, and the first.
    """
    parts: dict[tuple[str, int], set[int]] = {}
    for path in shards:
        if match := _PART.match(path.stem):
            stem, part, total = match[1], int(match[2]), int(match[3])
            parts.setdefault((stem, total), set()).add(part)
    for (stem, total), present in parts.items():
        if missing := sorted(set(range(total)) - present):
            raise DataError(
                f"all shards of a split must be there: {shards[0].parent} lacks {len(missing)} of {total}, the first "
                f"{stem}-{missing[0]:05d}-of-{total:05d}.parquet; download the rest"
            )
