"""A folder of Parquet shards in the Hugging Face hub's image layout: which files, which columns, which labels.

Everything that can be wrong with a folder, except its images, is found here within milliseconds and before anything is
decoded. `parquet` decodes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.data.images import DataError

TEST_PREFIXES = ("test", "valid", "val")
"""In the order of preference; validation* and valid* are both `valid`."""
LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label")
"""Names that decide between several integer columns, the first that is there."""
MAX_UNNAMED_CLASSES = 100_000
"""Without class names the largest label says how many classes there are; one wild label must not make a huge model."""

_PART = re.compile(r"(.*)-(\d+)-of-(\d+)$")


@dataclass(frozen=True)
class Columns:
    """Which columns of a shard hold what.

    Args:
        image: a struct column with the encoded images under `bytes`.
        label: an integer column.
        class_names: from the schema's metadata; None where it has none.
    """

    image: str
    label: str
    class_names: tuple[str, ...] | None


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of "train" and "test", by the first word of their names, sorted.

    A shard is for training if its name starts with `train`, for the test if it starts with `test`; without those,
    `validation`, `valid` or `val` shards are the test. Others are not used.

    Raises:
        ValueError: there are no shards, a split has none, or some of `…-of-00004` are missing.
    """
    found = sorted(folder.glob("*.parquet"))
    if not found:
        below = sorted({str(path.parent) for path in folder.glob("*/*.parquet")})
        remedy = (
            f"there are some in {below[0]}, name that"
            if below
            else "name a folder of train*.parquet and test*.parquet, or of train/CLASS/*.jpg and test/CLASS/*.jpg"
        )
        raise ValueError(f"a data folder must hold Parquet shards: got none in {folder}; {remedy}")
    train = _starting_with("train", found)
    test = next((shards for prefix in TEST_PREFIXES if (shards := _starting_with(prefix, found))), [])
    for split, shards, wanted in (("train", train, "train*"), ("test", test, "test*, validation* or val*")):
        if not shards:
            names = ", ".join(path.name for path in found[:4])
            raise ValueError(
                f"a data folder must hold {split} shards: got {names} in {folder}; rename or add {wanted}.parquet"
            )
        _check_complete(shards)
    return {"train": train, "test": test}


def read_columns(shards: Sequence[Path]) -> Columns:
    """The columns that all shards agree on.

    Raises:
        DataError: a shard is not a whole Parquet file, has other columns, or differs from the first.
    """
    first = _columns(shards[0])
    for path in shards[1:]:
        if (other := _columns(path)) != first:
            raise DataError(
                f"all shards must have the same columns and class names: {path.name} has {_shown(other)}, "
                f"{shards[0].name} has {_shown(first)}; remove the one that does not belong to {path.parent}"
            )
    return first


def read_labels(path: Path, columns: Columns) -> Int64[np.ndarray, " n"]:
    """All labels of one shard.

    Raises:
        DataError: a label is null, negative or not one of the classes; shard and row.
    """
    import pyarrow.parquet as pq

    with readable(path):
        column = pq.read_table(path, columns=[columns.label])[columns.label]
    limit = MAX_UNNAMED_CLASSES if columns.class_names is None else len(columns.class_names)
    values = np.array([-1 if label is None else min(label, limit) for label in column.to_pylist()], dtype=np.int64)
    wrong = np.flatnonzero((values < 0) | (values >= limit))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"labels must be in 0..{limit - 1}: got {column[row].as_py()} in {path.name}, row {row} "
            f"({len(wrong)} such rows); correct or remove those rows"
        )
    return values


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


def _starting_with(prefix: str, shards: Sequence[Path]) -> list[Path]:
    return [path for path in shards if path.name.lower().startswith(prefix)]


def _check_complete(shards: Sequence[Path]) -> None:
    """Refuse to train on a part of a data set that says of itself how many shards it has."""
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


def _columns(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with readable(path):
        schema = pq.read_schema(path)
    images = [field.name for field in schema if _holds_bytes(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    labels = integers if len(integers) == 1 else [name for name in LABEL_NAMES if name in integers][:1]
    if len(images) != 1 or not labels:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise DataError(
            f"shards must have one image column, struct<bytes: binary, path: string>, and one integer label column "
            f"(of several, the one named {', '.join(LABEL_NAMES)}): got {found} in {path}; rename or drop columns"
        )
    return Columns(images[0], labels[0], _class_names(schema.metadata or {}, labels[0], path))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    content = kind.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _class_names(metadata: dict[bytes, bytes], label: str, path: Path) -> tuple[str, ...] | None:
    """The `names` of the label's feature in the metadata that the `datasets` library writes."""
    if b"huggingface" not in metadata:
        return None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label].get("names")
        return None if names is None else tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the schema's huggingface metadata must describe the label column {label!r}: that of {path} does not "
            f"({error!r}); write the shard with `datasets`, or without that metadata"
        ) from error


def _shown(columns: Columns) -> str:
    names = "no class names" if columns.class_names is None else f"{len(columns.class_names)} class names"
    return f"{columns.image}, {columns.label} and {names}"
