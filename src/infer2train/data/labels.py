"""The labels of Parquet shards as targets, and what their classes are called.

Between `columns`, which says where labels are, and `parquet`. Integers are classes as they are. Strings are the names
of classes, which the training alone decides, so that a class has one index in every split. Booleans are two classes. A
split that nobody labelled, as competitions publish their tests, is known by having no label at all.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.data.columns import Columns, Kind
from infer2train.data.images import DataError
from infer2train.data.shards import count_rows, readable, shown

MAX_UNNAMED_CLASSES = 100_000
"""Without class names the labels say how many classes there are; one wild label must not make a huge model."""
_NO_LABEL = (None, -1, "")
"""What stands for a label in a row that has none."""


def labelled(groups: Mapping[str, list[Path]], columns: Columns) -> list[Path]:
    """The first of these groups of shards that has labels; a warning tells which ones have none.

    Args:
        groups: shards to test on, by their prefix and in the order of preference.
        columns: those of the training.

    Raises:
        DataError: none has.
    """
    without: list[Path] = []
    for shards in groups.values():
        is_empty = not any(count_rows(path) for path in shards)  # which is said where the rows are read
        if is_empty or any(_has_labels(path, columns.label) for path in shards):
            if without:
                warnings.warn(
                    f"{shown(without[0])} has no labels (column {columns.label!r} is not there, or has nothing but "
                    f"null, -1 or empty strings); {shown(shards[0])} is the test set",
                    RuntimeWarning,
                )
            return shards
        without += shards
    raise DataError(
        f"images to test on must have labels: got {', '.join(shown(path) for path in without[:4])} in "
        f"{without[0].parent}, in which column {columns.label!r} is not there, or has nothing but null, -1 or empty "
        "strings; add validation*.parquet with labels"
    )


def read_targets(
    splits: Mapping[str, list[Path]], columns: Columns
) -> tuple[dict[Path, Int64[np.ndarray, " n"]], tuple[str, ...]]:
    """The targets of all shards, and what the classes are called.

    Args:
        splits: the shards of "train", and of others that have the same classes.
        columns: of all of them.

    Raises:
        DataError: a label is none, or not one of the classes; shard and row.
    """
    labels = {path: _read(path, columns.label) for path in chain(*splits.values())}
    if columns.kind is Kind.INTEGERS:
        limit = MAX_UNNAMED_CLASSES if columns.class_names is None else len(columns.class_names)
        rule = f"labels must be in 0..{limit - 1}"
        targets = _targets(labels, lambda label: label if 0 <= label < limit else None, rule)
        num_unnamed = 1 + max(int(ids.max(initial=0)) for ids in targets.values())
        return targets, columns.class_names or tuple(str(k) for k in range(num_unnamed))
    if columns.kind is Kind.BOOLEANS:
        return _targets(labels, int, "labels must be true or false"), ("false", "true")
    class_names = columns.class_names or _names_in(chain(*(labels[path] for path in splits["train"])))
    index = {name: k for k, name in enumerate(class_names)}
    return _targets(labels, index.get, "labels must be names of classes that train has"), class_names


def _names_in(labels: Iterable[str | None]) -> tuple[str, ...]:
    names = tuple(sorted({label for label in labels if label not in _NO_LABEL}))
    if len(names) > MAX_UNNAMED_CLASSES:
        raise DataError(
            f"labels must be the names of at most {MAX_UNNAMED_CLASSES:,} classes: got {len(names):,} different ones, "
            f"such as {names[0][:40]!r}; pass --label-column NAME"
        )
    return names


def _targets(
    labels: Mapping[Path, list[Any]], target_of: Callable[[Any], int | None], rule: str
) -> dict[Path, Int64[np.ndarray, " n"]]:
    """Of each shard what `target_of` makes of its labels."""
    found: dict[Path, Int64[np.ndarray, " n"]] = {}
    for path, rows in labels.items():
        targets = [None if label is None else target_of(label) for label in rows]
        wrong = [row for row, target in enumerate(targets) if target is None]
        if wrong:
            raise DataError(
                f"{rule}: got {rows[wrong[0]]} in {shown(path)}, row {wrong[0]} ({len(wrong)} such rows); correct or "
                "remove those rows"
            )
        found[path] = np.array(targets, np.int64)
    return found


def _read(path: Path, label: str) -> list[Any]:
    import pyarrow.parquet as pq

    with readable(path), pq.ParquetFile(path) as shard:
        return list(shard.read(columns=[label])[label].to_pylist())


def _has_labels(path: Path, label: str) -> bool:
    import pyarrow.parquet as pq

    with readable(path), pq.ParquetFile(path) as shard:
        if label not in shard.schema_arrow.names:
            return False
        batches = shard.iter_batches(columns=[label])
        return any(row not in _NO_LABEL for batch in batches for row in batch.column(0).to_pylist())
