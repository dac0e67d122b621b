"""Any folder of Parquet shards in the Hugging Face hub's image layout: decoded once, or unpacked once.

`shards` finds files, columns and labels; `once` decodes their images into the cache, `unpacked` copies them there as
they are, to be decoded on demand. This module reads the rows for both.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from infer2train.data.cache import cached, kept
from infer2train.data.encoded import EncodedData
from infer2train.data.entry import FORMAT, Contents, write_manifest
from infer2train.data.fingerprints import fingerprint
from infer2train.data.images import ImageData
from infer2train.data.once import BATCH_ROWS, EncodedRows, Rows, check_image_size, decode_splits
from infer2train.data.shards import Columns, count_rows, find_shards, read_columns, read_labels, readable
from infer2train.data.unpacked import open_unpacked, unpack


def load_folder(
    folder: Path,
    *,
    cache_dir: Path,
    image_size: int | None = None,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: bool = True,
) -> ImageData:
    """The images of a folder as RGB uint8, from the cache if these very files were decoded before.

    Args:
        folder: holds train*.parquet and test*.parquet, or validation* in the place of test*.
        cache_dir: of the decoded arrays, height x width x 3 bytes an image; made if it does not exist.
        image_size: height and width in pixels, as for `decoding.decode`. Default: as stored, all of one size.
        on_bad_image: an image that cannot be decoded is an error, or is left out and counted in `skipped`.
        progress: show progress on standard error while decoding.

    Raises:
        ValueError: the folder, a shard, a label or an image is not as it must be: which, and the remedy.
    """
    check_image_size(image_size)
    shards = find_shards(folder)
    options = {"layout": "parquet", "format": FORMAT, "image_size": image_size, "on_bad_image": on_bad_image}
    content = fingerprint([*shards["train"], *shards["test"]], options, cache_dir)

    def build(entry: Path) -> Contents:
        splits, class_names = _read_folder(shards)
        skip = on_bad_image == "skip"
        return Contents(class_names, decode_splits(splits, entry, image_size=image_size, skip=skip, progress=progress))

    return cached(cache_dir, name=folder.resolve().name, fingerprint=content, build=build)


def load_encoded(folder: Path, *, cache_dir: Path, image_size: int | None = None, progress: bool = True) -> EncodedData:
    """The images of a folder, encoded as they are, from the cache if these very files were unpacked before.

    Args:
        folder: as for `load_folder`.
        cache_dir: of the unpacked images, which need as much room as the shards; made if it does not exist.
        image_size: the most that the shorter side of a decoded image may have (pixels). Default: as stored.
        progress: show progress on standard error while unpacking.

    Raises:
        ValueError: the folder, a shard or a label is not as it must be: which, and the remedy. Images are looked at
            only when they are needed.
    """
    check_image_size(image_size)
    shards = find_shards(folder)
    options = {"layout": "parquet", "format": FORMAT, "encoded": True}
    content = fingerprint([*shards["train"], *shards["test"]], options, cache_dir)
    rows = {split: {path.name: count_rows(path) for path in paths} for split, paths in shards.items()}

    def look(place: Path) -> EncodedData:
        return open_unpacked(place, name=folder.resolve().name, fingerprint=content, rows=rows, image_size=image_size)

    def build(entry: Path) -> None:
        splits, class_names = _read_folder(shards)
        unpack(splits, entry, progress=progress)
        write_manifest(entry, content, Contents(class_names, skipped=0))

    return kept(cache_dir / f"encoded-{content[:32]}", look, build)


def _read_folder(shards: dict[str, list[Path]]) -> tuple[dict[str, EncodedRows], tuple[str, ...]]:
    """All encoded images of a folder, by split, and what its classes are called."""
    columns = read_columns([*shards["train"], *shards["test"]])
    labels = {path: read_labels(path, columns) for path in chain(*shards.values())}
    num_unnamed = 1 + max(int(targets.max(initial=0)) for targets in labels.values())
    splits = {
        split: EncodedRows(
            sum(len(labels[path]) for path in paths),
            chain.from_iterable(_read_rows(path, columns, labels[path]) for path in paths),
        )
        for split, paths in shards.items()
    }
    return splits, columns.class_names or tuple(str(k) for k in range(num_unnamed))


def _read_rows(path: Path, columns: Columns, targets: Int64[np.ndarray, " n"]) -> Iterator[Rows]:
    import pyarrow.parquet as pq

    first = 0
    with readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
        for batch in shard.iter_batches(BATCH_ROWS, columns=[columns.image]):
            encoded = batch.column(0).field("bytes").to_pylist()
            yield Rows(encoded, targets[first : first + len(encoded)], partial(_place, path.name, first))
            first += len(encoded)


def _place(shard: str, first: int, row: int) -> str:
    return f"{shard}, row {first + row}"
