"""Which column is the label: by name and by feature; in doubt the shards are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infer2train.data.labels import Columns, LabelKind, read_columns

Write = Callable[..., Path]
CLASSES = {"names": ["cat", "dog"], "_type": "ClassLabel"}
NUMBER = {"dtype": "int64", "_type": "Value"}


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    table = pa.table({"image": [{"bytes": b"x", "path": None}], **columns})
    if features is not None:
        features = {name: {"_type": "Value"} for name in table.column_names} | features
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_a_class_label_is_found_whatever_its_name(tmp_path: Path, write_shard: Write) -> None:
    path = write_shard(
        tmp_path / "a.parquet", [b"x"], [0], image_column="img", label_column="what", extra={"id": [7], "t": ["y"]}
    )
    assert read_columns([path]) == Columns("img", "what", "integers", ("cat", "dog"))


def test_of_several_class_labels_the_usual_name_counts(tmp_path: Path) -> None:
    features = {"coarse_label": CLASSES, "fine_label": {**CLASSES, "names": ["a", "b", "c"]}}
    path = write(tmp_path / "a.parquet", {"id": [7], "coarse_label": [1], "fine_label": [0]}, features)
    assert read_columns([path]) == Columns("image", "fine_label", "integers", ("a", "b", "c"))


@pytest.mark.parametrize("name", ["label", "labels", "fine_label", "coarse_label", "Label", "class", "cls", "target"])
def test_without_features_the_name_counts(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.parquet", {"image_id": [641], "width": [32], name: [1], "caption": ["a cat"]})
    assert read_columns([path]) == Columns("image", name, "integers", None)


STRINGS = [
    pa.array(["cat"]),
    pa.array(["cat"], pa.large_string()),
    pa.array(["cat"]).dictionary_encode(),
    pa.array(["cat"], pa.large_string()).dictionary_encode(),
]


@pytest.mark.parametrize("labels", STRINGS, ids=lambda labels: str(labels.type)[:30])
def test_strings_are_labels_and_the_only_integers_are_not(tmp_path: Path, labels: Any) -> None:
    path = write(tmp_path / "a.parquet", {"image_id": [641], "label": labels})
    assert read_columns([path]) == Columns("image", "label", "strings", None)


@pytest.mark.parametrize(
    ("values", "kind"), [(pa.array([True]), "booleans"), (pa.array([3]).dictionary_encode(), "integers")]
)
def test_booleans_and_numbers_in_a_dictionary(tmp_path: Path, values: Any, kind: LabelKind) -> None:
    assert read_columns([write(tmp_path / "a.parquet", {"label": values})]).kind == kind


DOUBTFUL: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    ("only an id", {"image_id": [641]}, None),
    ("only a width", {"width": [641]}, {"width": NUMBER}),
    ("a text", {"caption": ["a cat"]}, None),
    ("two unnamed integers", {"a": [0], "b": [1]}, None),
    ("a label of floats beside an id", {"label": [0.5], "id": [1]}, None),
    ("a list of labels beside an id", {"labels": [[0, 1]], "id": [1]}, None),
    ("two of the looser names", {"class": ["cat"], "target": [0]}, None),
    ("two that differ in capitals", {"label": [0], "Label": [1]}, None),
    ("two class labels", {"eyes": [0], "hair": [1]}, {"eyes": CLASSES, "hair": CLASSES}),
    ("a class label beside another label", {"gender": [0], "label": [1]}, {"gender": CLASSES, "label": NUMBER}),
]


@pytest.mark.parametrize(("columns", "features"), [case[1:] for case in DOUBTFUL], ids=[case[0] for case in DOUBTFUL])
def test_in_doubt_the_columns_are_listed(
    tmp_path: Path, columns: dict[str, Any], features: dict[str, Any] | None
) -> None:
    path = write(tmp_path / "train.parquet", columns, features)
    with pytest.raises(ValueError, match=r"must have a label column .*pass --label-column NAME$") as error:
        read_columns([path])
    assert all(f"{name}: " in str(error.value) for name in columns)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("case", DOUBTFUL, ids=[case[0] for case in DOUBTFUL])
def test_a_column_that_was_asked_for_ends_the_doubt(tmp_path: Path, case: tuple[str, Any, Any]) -> None:
    path = write(tmp_path / "train.parquet", *case[1:])
    for name, values in case[1].items():
        if isinstance(values[0], int | str):
            assert read_columns([path], name).label == name


def test_a_column_that_was_asked_for_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": [0], "kind": ["cat"]}, {"label": CLASSES})
    assert read_columns([path], "kind") == Columns("image", "kind", "strings", None)


@pytest.mark.parametrize("name", ["labl", "image", "weight"])
def test_a_column_that_cannot_be_the_label(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.parquet", {"label": [0], "weight": [0.5]})
    with pytest.raises(ValueError, match=rf"got --label-column {name}, and image: .*label: int64.*name another"):
        read_columns([path], name)


def test_class_names_may_be_absent(tmp_path: Path, write_shard: Write) -> None:
    assert read_columns([write_shard(tmp_path / "a.parquet", [b"x"], [0], class_names=None)]).class_names is None


@pytest.mark.parametrize(
    ("table", "image"),
    [
        ({"image": [b"x"], "label": [0]}, "image"),
        ({"jpg": pa.array([b"x"], pa.large_binary()), "label": [0]}, "jpg"),
        ({"hash": [b"y"], "image": [{"bytes": b"x"}], "label": [0]}, "image"),
    ],
    ids=["plain bytes", "large bytes", "structs before plain bytes"],
)
def test_images_as_bytes(tmp_path: Path, table: dict[str, Any], image: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read_columns([tmp_path / "a.parquet"]).image == image


@pytest.mark.parametrize(
    "table",
    [
        {"label": [0]},
        {"image": [{"bytes": b"x"}], "mask": [{"bytes": b"x"}], "label": [0]},
        {"image": [b"x"], "hash": [b"x"], "label": [0]},
        {"image": [{"path": "a.png"}], "label": [0]},
    ],
    ids=["no image", "two images", "two of plain bytes", "no bytes"],
)
def test_other_columns_are_listed(tmp_path: Path, table: dict[str, list[object]]) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(ValueError, match=r"must have one image column.*got .*label: int64") as error:
        read_columns([path])
    assert str(path) in str(error.value)


def test_shards_that_disagree_are_named(tmp_path: Path, write_shard: Write) -> None:
    first = write_shard(tmp_path / "train-a.parquet", [b"x"], [0])
    second = write_shard(tmp_path / "train-b.parquet", [b"x"], [0], class_names=("cat", "dog", "owl"))
    with pytest.raises(ValueError, match=r"-b\.parquet has image, label .* 3 class names, train-a\.parquet .* 2 class"):
        read_columns([first, second])


def test_numbers_in_one_shard_and_strings_in_another(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"train-{value}.parquet", {"label": [value]}) for value in (1, "cat")]
    with pytest.raises(ValueError, match=r"has image, label \(strings\).*has image, label \(integers\)"):
        read_columns(paths)


def test_class_names_must_be_text_that_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"label": [0]}, {"label": {**CLASSES, "names": ["cat", "\ud800"]}})
    with pytest.raises(
        ValueError, match=r"class names must be in UTF-8: got '\\ud800' in the schema's .* another name"
    ):
        read_columns([path])


def test_metadata_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [{"bytes": b"x"}], "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": '{"info":' + "[" * 200_000}), path)
    with pytest.raises(ValueError, match="must describe the label column 'label'"):
        read_columns([path])


def test_metadata_of_another_column_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": b"x"}], "label": [0]})
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": '{"info": {"features": {"klass": {}}}}'}), path)
    with pytest.raises(ValueError, match="must describe the label column 'label'"):
        read_columns([path])
