"""Which column of Parquet shards holds the images, and which the labels: by name and by feature, never by luck.

`shards` finds the files, `labels` reads the labels. Features are what the `datasets` library writes into the schema's
metadata: a ClassLabel column holds classes, whatever its name. Nothing else that happens to be a number is taken for a
label: where name and feature do not settle it, the shards are refused and their columns listed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from infer2train.data.images import DataError
from infer2train.data.shards import readable, shown

LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label")
"""Names of label columns; of several, the first that is there."""
OTHER_LABEL_NAMES = ("class", "classes", "cls", "class_label", "class_name", "target", "targets", "category")
"""Names that tell a label column where there is no other of them, nor of `LABEL_NAMES`."""


class Kind(StrEnum):
    """What a label column is made of."""

    INTEGERS = "integers"
    STRINGS = "strings"
    BOOLEANS = "booleans"


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
    kind: Kind
    class_names: tuple[str, ...] | None


def read_columns(shards: Sequence[Path], label_column: str | None = None) -> Columns:
    """The columns that all shards agree on.

    Args:
        shards: of one split or of several.
        label_column: holds the labels. Default: found by name and feature.

    Raises:
        DataError: a shard is not a whole Parquet file, has other columns, or differs from the first.
    """
    first = _columns(shards[0], label_column)
    for path in shards[1:]:
        if (other := _columns(path, label_column)) != first:
            raise DataError(
                f"all shards must have the same columns and class names: {shown(path)} has {_described(other)}, "
                f"{shown(shards[0])} has {_described(first)}; remove the one that does not belong to {path.parent}"
            )
    return first


def kind_of(type_: Any) -> Kind | None:
    """What labels a column of this Arrow type holds; None where it can hold none."""
    import pyarrow as pa

    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_integer(plain):
        return Kind.INTEGERS
    if pa.types.is_boolean(plain):
        return Kind.BOOLEANS
    return Kind.STRINGS if str(plain) in ("string", "large_string", "string_view") else None


def _columns(path: Path, label_column: str | None) -> Columns:
    import pyarrow.parquet as pq

    with readable(path):
        schema = pq.read_schema(path)
    kinds = {field.name: kind for field in schema if (kind := kind_of(field.type)) is not None}
    features = _features(schema.metadata or {})
    listed = f"got {', '.join(f'{field.name}: {field.type}' for field in schema)} in {path}"
    image = _image(schema, listed)
    label = _label(kinds, features, listed) if label_column is None else _asked_for(label_column, kinds, listed)
    return Columns(image, label, kinds[label], _class_names(features, label, path))


def _image(schema: Any, listed: str) -> str:
    """The column of structs with the images' bytes or, where there is no such struct, that of plain bytes."""
    structs = [field.name for field in schema if _holds_bytes(field.type)]
    images = structs or [field.name for field in schema if _is_bytes(field.type)]
    if len(images) != 1:
        raise DataError(
            f"shards must have one image column, struct<bytes: binary, path: string> or binary: {listed}; rename or "
            "drop columns"
        )
    return str(images[0])


def _label(kinds: dict[str, Kind], features: dict[str, Any] | None, listed: str) -> str:
    """The column that name and feature tell, where they do not contradict each other."""
    named = _named(list(kinds))
    classes = [name for name in kinds if _is_class_label((features or {}).get(name))]
    if len(named) == 1 and (not classes or named[0] in classes):
        return named[0]
    if len(classes) == 1 and not named:
        return classes[0]
    raise DataError(
        f"shards must have a label column of integers, strings or booleans that is a ClassLabel feature or is named "
        f"{', '.join(LABEL_NAMES)} (or, where there is but one of them, {', '.join(OTHER_LABEL_NAMES)}): {listed}; "
        "pass --label-column NAME"
    )


def _named(columns: Sequence[str]) -> list[str]:
    """The columns whose names, small or capital, say that they hold labels; several are in doubt."""
    for wanted in (*((name,) for name in LABEL_NAMES), OTHER_LABEL_NAMES):
        if found := [name for name in columns if name.lower() in wanted]:
            return found
    return []


def _asked_for(label_column: str, kinds: dict[str, Kind], listed: str) -> str:
    if label_column not in kinds:
        raise DataError(
            f"the label column must be one of integers, strings or booleans: got --label-column {label_column}, and "
            f"{listed.removeprefix('got ')}; name another"
        )
    return label_column


def _is_bytes(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _holds_bytes(type_: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0 and _is_bytes(type_.field("bytes").type)
    )


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any] | None:
    """What the `datasets` library wrote of each column; None where it wrote nothing, and empty where that is broken."""
    if b"huggingface" not in metadata:
        return None
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and (feature.get("_type") == "ClassLabel" or "names" in feature)


def _class_names(features: dict[str, Any] | None, label: str, path: Path) -> tuple[str, ...] | None:
    """The `names` of the label's feature."""
    if features is None:
        return None
    feature = features.get(label)
    if not isinstance(feature, dict):
        raise DataError(
            f"the schema's huggingface metadata must describe the label column {label!r}: that of {path} does not; "
            "write the shard with `datasets`, or without that metadata"
        )
    names = feature.get("names")
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _described(columns: Columns) -> str:
    names = "no class names" if columns.class_names is None else f"{len(columns.class_names)} class names"
    return f"{columns.image}, {columns.label} ({columns.kind}) and {names}"
