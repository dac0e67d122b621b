"""Labels as targets: numbers, names and booleans; what is no label; splits that nobody labelled."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infer2train.data.labels import read_columns, read_targets
from infer2train.data.parquet import Shards

Write = Callable[..., Path]


def write(path: Path, labels: Sequence[Any], kind: Any = None, name: str = "label") -> Path:
    path.parent.mkdir(exist_ok=True)
    images = [{"bytes": b"x", "path": None}] * len(labels)
    pq.write_table(pa.table({"image": images, name: pa.array(labels, kind)}), path)
    return path


def targets(splits: dict[str, list[Path]]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    found, class_names = read_targets(splits, read_columns([path for paths in splits.values() for path in paths]))
    return {path.stem: ids.tolist() for path, ids in found.items()}, class_names


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_names_are_classes_in_their_order_and_the_same_in_every_shard(tmp_path: Path, kind: Any) -> None:
    splits = {
        "train": [
            write(tmp_path / "train-0.parquet", ["owl", "cat", "owl"], kind),
            write(tmp_path / "train-1.parquet", ["dog", "cat"], kind),
        ],
        "test": [write(tmp_path / "test.parquet", ["owl", "dog"], kind)],
    }
    assert targets(splits) == (
        {"train-0": [2, 0, 2], "train-1": [1, 0], "test": [2, 1]},
        ("cat", "dog", "owl"),
    )


def test_booleans_are_two_classes_even_where_one_is_missing(tmp_path: Path) -> None:
    splits = {
        "train": [write(tmp_path / "train.parquet", [True, True])],
        "test": [write(tmp_path / "test.parquet", [False])],
    }
    assert targets(splits) == ({"train": [1, 1], "test": [0]}, ("false", "true"))


def test_a_name_that_only_the_test_has_is_refused(tmp_path: Path) -> None:
    splits = {
        "train": [write(tmp_path / "train.parquet", ["cat", "dog"])],
        "test": [write(tmp_path / "test.parquet", ["cat", "owl", "owl"])],
    }
    with pytest.raises(ValueError, match=r"classes that train has: got owl in test\.parquet, row 1 \(2 such rows\)"):
        targets(splits)


@pytest.mark.parametrize(
    ("labels", "kind"), [(["cat", None, "", "dog"], None), ([True, None, None, False], pa.bool_())]
)
def test_a_row_without_a_label_is_named(tmp_path: Path, labels: list[Any], kind: Any) -> None:
    splits = {"train": [write(tmp_path / "train" / "0000.parquet", labels, kind)]}
    with pytest.raises(ValueError, match=r"got None in train/0000\.parquet, row 1 \(2 such rows\); correct or remove"):
        targets(splits)


@pytest.mark.parametrize("label", [None, -1, 2])
def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path: Path, write_shard: Write, label: int | None) -> None:
    path = write_shard(tmp_path / "train.parquet", [b"x"] * 4, [0, 1, label, label])
    with pytest.raises(ValueError, match=rf"in 0\.\.1: got {label} in train\.parquet, row 2 \(2 such rows\)"):
        targets({"train": [path]})


def test_without_names_a_wild_label_is_refused(tmp_path: Path, write_shard: Write) -> None:
    path = write_shard(tmp_path / "a.parquet", [b"x"], [2**62], class_names=None)
    with pytest.raises(ValueError, match="row 0"):
        targets({"train": [path]})


UNLABELLED: list[tuple[list[Any], Any, str]] = [
    ([-1, -1], None, "label"),
    ([None, None], pa.int64(), "label"),
    ([None, None], pa.null(), "label"),
    ([None, -1], pa.int64(), "label"),
    (["", None], pa.string(), "label"),
    ([0, 1], None, "image_id"),
]


@pytest.mark.parametrize(("labels", "kind", "name"), UNLABELLED)
def test_unlabelled_shards_give_way_to_labelled_ones(tmp_path: Path, labels: Any, kind: Any, name: str) -> None:
    groups = {
        "train": [write(tmp_path / "train.parquet", [0, 1])],
        "test": [write(tmp_path / "test.parquet", labels, kind, name)],
    }
    with pytest.raises(ValueError, match=r"must have labels: got test\.parquet in .*add validation\*\.parquet"):
        Shards("pets", groups)
    groups["valid"] = [write(tmp_path / "valid.parquet", [1])]
    with pytest.warns(RuntimeWarning, match=r"test\.parquet has no labels .*; valid\.parquet is the test set"):
        assert Shards("pets", groups).rows()[0]["test"].targets.tolist() == [1]


@pytest.mark.parametrize("labels", [[-1, 0], [None, 1]])
def test_some_labels_are_labels(tmp_path: Path, labels: list[int | None]) -> None:
    """So that the rows without one are named, rather than the whole split passed over."""
    splits = {
        "train": [write(tmp_path / "train.parquet", [0, 1])],
        "test": [write(tmp_path / "test.parquet", labels)],
        "valid": [write(tmp_path / "valid.parquet", [1])],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shards = Shards("pets", splits)
    with pytest.raises(ValueError, match=r"in test\.parquet, row 0 \(1 such rows\)"):
        shards.rows()
