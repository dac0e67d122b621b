from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infer2train.data.shards import Columns, find_shards, read_columns, read_labels

Write = Callable[..., Path]


def names(shards: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in shards.items()}


@pytest.mark.parametrize(
    ("files", "test"),
    [
        (["train", "test"], "test"),
        (["train", "validation", "test"], "test"),
        (["train", "valid", "extra"], "valid"),
        (["train", "val_0"], "val_0"),
        (["train", "validation-00000-of-00001"], "validation-00000-of-00001"),
    ],
)
def test_splits_follow_from_names(tmp_path: Path, files: list[str], test: str) -> None:
    for name in files:
        (tmp_path / f"{name}.parquet").touch()
    assert names(find_shards(tmp_path)) == {"train": ["train.parquet"], "test": [f"{test}.parquet"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "got none"),
        (["data/train.parquet"], "there are some in .*data, name that"),
        (["train.parquet"], "must hold test shards"),
        (["test.parquet"], "must hold train shards"),
        (["train-00000-of-00003.parquet", "test.parquet"], "lacks 2 of 3, the first train-00001-of-00003"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        find_shards(tmp_path)


def test_columns_are_found_by_their_types(tmp_path: Path, write_shard: Write) -> None:
    path = write_shard(tmp_path / "a.parquet", [b"x"], [0], image_column="img", label_column="what", extra={"t": ["y"]})
    assert read_columns([path]) == Columns("img", "what", ("cat", "dog"))


def test_of_several_integer_columns_the_named_one_counts(tmp_path: Path, write_shard: Write) -> None:
    path = write_shard(
        tmp_path / "a.parquet", [b"x"], [0], label_column="fine_label", extra={"id": [7], "coarse_label": [1]}
    )
    assert read_columns([path]).label == "fine_label"


def test_class_names_may_be_absent(tmp_path: Path, write_shard: Write) -> None:
    assert read_columns([write_shard(tmp_path / "a.parquet", [b"x"], [0], class_names=None)]).class_names is None


@pytest.mark.parametrize(
    "table",
    [
        {"label": [0]},
        {"image": [{"bytes": b"x"}], "label": ["cat"]},
        {"image": [{"bytes": b"x"}], "a": [0], "b": [1]},
        {"image": [{"bytes": b"x"}], "mask": [{"bytes": b"x"}], "label": [0]},
        {"image": [b"x"], "label": [0]},
        {"image": [{"path": "a.png"}], "label": [0]},
    ],
    ids=["no image", "text label", "two unnamed integers", "two images", "plain bytes", "no bytes"],
)
def test_other_columns_are_listed(tmp_path: Path, table: dict[str, list[object]]) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(
        ValueError, match=r"must have one image column.*got .*label|must have one image.*a: int64"
    ) as error:
        read_columns([path])
    assert str(path) in str(error.value)


def test_shards_that_disagree_are_named(tmp_path: Path, write_shard: Write) -> None:
    first = write_shard(tmp_path / "a.parquet", [b"x"], [0])
    second = write_shard(tmp_path / "b.parquet", [b"x"], [0], class_names=("cat", "dog", "owl"))
    with pytest.raises(ValueError, match=r"b\.parquet has image, label and 3 class names, a\.parquet has .* 2 class"):
        read_columns([first, second])


def test_metadata_of_another_column_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": b"x"}], "label": [0]})
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": '{"info": {"features": {"klass": {}}}}'}), path)
    with pytest.raises(ValueError, match="must describe the label column 'label'"):
        read_columns([path])


@pytest.mark.parametrize("label", [None, -1, 2])
def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path: Path, write_shard: Write, label: int | None) -> None:
    path = write_shard(tmp_path / "a.parquet", [b"x"] * 4, [0, 1, label, label])
    with pytest.raises(ValueError, match=rf"in 0\.\.1: got {label} in a\.parquet, row 2 \(2 such rows\)"):
        read_labels(path, read_columns([path]))


def test_without_names_a_wild_label_is_refused(tmp_path: Path, write_shard: Write) -> None:
    path = write_shard(tmp_path / "a.parquet", [b"x"], [2**62], class_names=None)
    with pytest.raises(ValueError, match="row 0"):
        read_labels(path, read_columns([path]))


@pytest.mark.parametrize("keep", [0, 3, 0.5])
def test_a_truncated_shard_is_named(tmp_path: Path, write_shard: Write, keep: float) -> None:
    path = write_shard(tmp_path / "train.parquet", [b"x" * 1000], [0])
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"whole Parquet files: .*train\.parquet is not \(.*\); download it again"):
        read_columns([path])
