"""A data set of the Hugging Face hub by its name: `datasets` says which files are of which split, and fetches them.

What arrives are the Parquet shards themselves, in the hub's own cache ($HF_HOME), which other programs share; an Arrow
copy is not made of them, since `once` keeps what a run reads. A data set in another format is taken as the hub converts
it to Parquet. Where the files lie is written down in our cache, so that a later start needs neither network nor
`datasets`, and reads the same revision. No code of a data set is ever run.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infer2train.data.fingerprints import write_json
from infer2train.data.images import DataError

NAME = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
"""OWNER/NAME, then :CONFIGURATION where there are several, and @REVISION, else the newest."""
SPLITS = {"train": "train", "test": "test", "validation": "valid", "valid": "valid", "val": "val"}
"""What the hub's data sets call the splits of `parquet.SPLIT_FOLDERS`."""
_CONVERTED = "refs/convert/parquet"


def shards(name: str, cache_dir: Path, progress: bool) -> dict[str, list[Path]]:
    """The shards of a data set of the hub by split, as `parquet.find_shards` gives those of a folder.

    Args:
        name: as `NAME` has it. A `DataError` if there is no such data set, or it cannot be fetched.
        cache_dir: where it is written down in which files they are.
        progress: show the downloads on standard error.
    """
    index = cache_dir / "hub" / f"{quote(name, safe='')}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        known = {split: [Path(path) for path in paths] for split, paths in json.loads(index.read_bytes()).items()}
        are_there = (paths and all(path.is_file() for path in paths) for paths in known.values())
        if known.keys() > {"train"} and all(are_there):
            return known
    found = _fetched(name, progress)
    write_json(index, {split: [str(path) for path in paths] for split, paths in found.items()})
    return found


def _fetched(name: str, progress: bool) -> dict[str, list[Path]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"--data must be a folder or, with the datasets library, a data set of the Hugging Face hub: got {name!r}, "
            "which is no folder here; pip install 'infer2train[hub]', or pass --data FOLDER with its Parquet shards"
        ) from error
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not progress:
        datasets.disable_progress_bars(), disable_progress_bars()
    with _said(name):
        files = _files(datasets, name)
        wanted = {split: files[theirs] for theirs, split in SPLITS.items() if theirs in files}
        if "train" not in wanted or len(wanted) == 1:
            raise DataError(
                f"data sets of the hub must have the split train, and test or validation: got {', '.join(files)} in "
                f"{name}; download it and name the folder, with its files renamed"
            )
        manager = datasets.DownloadManager(record_checksums=False)  # `fingerprints` hashes them
        return {split: [Path(path) for path in manager.download(paths)] for split, paths in wanted.items()}


def _files(datasets: Any, name: str) -> dict[str, list[str]]:
    """The addresses of the Parquet shards of each split."""
    match = NAME.fullmatch(name)
    assert match is not None, name
    builder = datasets.load_dataset_builder(match["path"], match["config"], revision=match["revision"])
    if not all(path.endswith(".parquet") for paths in builder.config.data_files.values() for path in paths):
        folder = builder.config.name
        builder = datasets.load_dataset_builder(match["path"], data_dir=folder, revision=_CONVERTED)
    return {str(split): list(paths) for split, paths in builder.config.data_files.items()}


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    """Say which data set it was, and what to do, when the hub or the way to it fails."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of the connection, of the hub, of the names of configurations: many libraries' types
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"--data must be a folder, or a data set that the Hugging Face hub has and this machine may fetch: got "
            f"{name!r}, which is no folder here, and {type(error).__name__}: {reason}; correct the name (OWNER/NAME, "
            "or OWNER/NAME:CONFIGURATION), connect for the first start and leave HF_HUB_OFFLINE unset, or pass --data "
            "FOLDER with its Parquet shards"
        ) from error
