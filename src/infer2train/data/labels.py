"""Which column of Parquet shards holds the images, which the labels, and what targets these make.

Columns are found by name and by feature, never by luck. Features are what the `datasets` library writes into the
schema's metadata: a ClassLabel column holds classes, whatever its name. Nothing else that happens to be a number is
taken for a label: where name and feature do not settle it, the shards are refused and their columns listed. The
metadata is read here, since importing `datasets` takes ten times as long as a start from the cache.

Integers are classes as they are. Strings are the names of classes, which the training alone decides, so that a class
has one index in every split. Booleans are two classes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from infer2train.data.images import DataError
from infer2train.settings import is_utf8

LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label")
"""Names of label columns; of several, the first that is there."""
OTHER_LABEL_NAMES = ("class", "classes", "cls", "class_label", "class_name", "target", "targets", "category")
"""Names that tell a label column where there is no other of them, nor of `LABEL_NAMES`."""
MAX_UNNAMED_CLASSES = 100_000
"""Without class names the labels say how many classes there are; one wild label must not make a huge model."""
LabelKind = Literal["integers", "strings", "booleans"]


@dataclass(frozen=True)
class Columns:
    """Which columns of a shard hold what.

    Args:
        image: a column with the encoded images, as binary or under `bytes` of a struct.
        label: the column of the labels.
        kind: what that is made of.
        class_names: from the schema's metadata; None where it has none.
    """

    image: str
    label: str
    kind: LabelKind
    class_names: tuple[str, ...] | None

    def __str__(self) -> str:
        names = "no class names" if self.class_names is None else f"{len(self.class_names)} class names"
        return f"{self.image}, {self.label} ({self.kind}) and {names}"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say which shard it is, in a `DataError`, when pyarrow cannot read one."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise DataError(f"shards must be whole Parquet files: {path} is not ({reason}); download it again") from error


def read_columns(shards: Sequence[Path], label_column: str | None = None) -> Columns:
    """The columns that all shards agree on, or a `DataError`; `label_column` settles where the labels are."""
    first = _columns(shards[0], label_column)
    for path in shards[1:]:
        if (other := _columns(path, label_column)) != first:
            raise DataError(
                f"all shards must have the same columns and class names: {shown(path)} has {other}, {shown(shards[0])} "
                f"has {first}; remove the one that does not belong to {path.parent}"
            )
    return first


def has_labels(path: Path, label: str) -> bool:
    """Whether a shard has the column of the labels, and in it anything but null, -1 and empty strings."""
    import pyarrow.parquet as pq

    with readable(path), pq.ParquetFile(path) as shard:
        if label not in shard.schema_arrow.names:
            return False
        batches = shard.iter_batches(columns=[label])
        return any(row not in (None, -1, "") for batch in batches for row in batch.column(0).to_pylist())


def read_targets(
    splits: Mapping[str, list[Path]], columns: Columns
) -> tuple[dict[Path, Int64[np.ndarray, " n"]], tuple[str, ...]]:
    """The targets of all shards, and what the classes of all splits are called, or a `DataError`: shard and row."""
    labels = {path: _read(path, columns.label) for path in chain(*splits.values())}
    is_named = columns.kind == "strings"
    names = ("false", "true") if columns.kind == "booleans" else columns.class_names
    if is_named and not names:
        names = _names_in(chain(*(labels[path] for path in splits["train"])))
    limit = MAX_UNNAMED_CLASSES if names is None else len(names)
    rule = "labels must be names of classes that train has" if is_named else f"labels must be in 0..{limit - 1}"
    index = {name: k for k, name in enumerate(names or ())}
    targets = {}
    for path, rows in labels.items():
        found = [index.get(row, -1) for row in rows] if is_named else [-1 if row is None else row for row in rows]
        wrong = [row for row, target in enumerate(found) if not 0 <= target < limit]
        if wrong:
            raise DataError(
                f"{rule}: got {rows[wrong[0]]} in {shown(path)}, row {wrong[0]} ({len(wrong)} such rows); correct or "
                "remove those rows"
            )
        targets[path] = np.array(found, np.int64)
    num_unnamed = 1 + max(int(found.max(initial=0)) for found in targets.values())
    return targets, names or tuple(str(k) for k in range(num_unnamed))


def shown(path: Path) -> str:
    """What a shard is called in a message: its name, after that of its folder where only this tells its split."""
    return path.name if path.name.lower().startswith(("train", "test", "val")) else f"{path.parent.name}/{path.name}"


def _read(path: Path, label: str) -> list[Any]:
    import pyarrow.parquet as pq

    with readable(path), pq.ParquetFile(path) as shard:
        return list(shard.read([label])[label].to_pylist())


def _names_in(labels: Iterable[str | None]) -> tuple[str, ...]:
    names = tuple(sorted({label for label in labels if label}))
    if len(names) > MAX_UNNAMED_CLASSES:
        raise DataError(
            f"labels must be the names of at most {MAX_UNNAMED_CLASSES:,} classes: got {len(names):,} different ones, "
            f"such as {names[0][:40]!r}; pass --label-column NAME"
        )
    return names


def _columns(path: Path, label_column: str | None) -> Columns:
    import pyarrow.parquet as pq

    with readable(path):
        schema = pq.read_schema(path)
    listed = ", ".join(f"{field.name}: {field.type}" for field in schema) + f" in {path}"
    # The struct with the images' bytes or, where there is no such struct, plain bytes.
    parts = [(field.name, part) for field in schema if str(field.type).startswith("struct<") for part in field.type]
    images = [name for name, part in parts if part.name == "bytes" and _is_bytes(part.type)]
    images = images or [field.name for field in schema if _is_bytes(field.type)]
    if len(images) != 1:
        raise DataError(
            "shards must have one image column, struct<bytes: binary, path: string> or binary: got "
            f"{listed}; rename or drop columns"
        )
    kinds = {field.name: kind for field in schema if (kind := _kind(field.type)) is not None}
    features = _features(schema.metadata or {})
    if label_column is not None and label_column not in kinds:
        raise DataError(
            f"the label column must be one of integers, strings or booleans: got --label-column {label_column}, and "
            f"{listed}; name another"
        )
    label = label_column or _label(kinds, features or {}, listed)
    if features is not None and not isinstance(features.get(label), dict):
        raise DataError(
            f"the schema's huggingface metadata must describe the label column {label!r}: that of {path} does not; "
            "write the shard with `datasets`, or without that metadata"
        )
    found = (features or {}).get(label, {}).get("names")
    names = tuple(map(str, found)) if isinstance(found, list) else None
    if wrong := [name for name in names or () if not is_utf8(name)]:
        raise DataError(
            f"class names must be in UTF-8: got {wrong[0]!r} in the schema's huggingface metadata of {path}; write the "
            "shard with another name"
        )
    return Columns(images[0], label, kinds[label], names)


def _label(kinds: dict[str, LabelKind], features: dict[str, Any], listed: str) -> str:
    """The column that name and feature tell, where they do not contradict each other."""
    wanted = (*((name,) for name in LABEL_NAMES), OTHER_LABEL_NAMES)
    named: list[str] = next(filter(None, ([name for name in kinds if name.lower() in group] for group in wanted)), [])
    classes = [name for name in kinds if _is_class_label(features.get(name))]
    if len(named) == 1 and (not classes or named[0] in classes):
        return named[0]
    if len(classes) == 1 and not named:
        return classes[0]
    raise DataError(
        "shards must have a label column of integers, strings or booleans that is a ClassLabel feature or is named "
        f"{', '.join(LABEL_NAMES)} (or, where there is but one of them, {', '.join(OTHER_LABEL_NAMES)}): got {listed}; "
        "pass --label-column NAME"
    )


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any] | None:
    """What the `datasets` library wrote of each column; None where it wrote nothing, and empty where that is broken."""
    if b"huggingface" not in metadata:
        return None
    try:
        return dict(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and (feature.get("_type") == "ClassLabel" or "names" in feature)


def _kind(type_: Any) -> LabelKind | None:
    """What labels a column of this Arrow type holds; None where it can hold none."""
    plain = str(type_.value_type if str(type_).startswith("dictionary<") else type_)
    if plain.startswith(("int", "uint")):
        return "integers"
    return "booleans" if plain == "bool" else "strings" if plain in ("string", "large_string", "string_view") else None


def _is_bytes(type_: Any) -> bool:
    return str(type_) in ("binary", "large_binary")
