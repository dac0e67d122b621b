from collections.abc import Callable
from pathlib import Path

import pytest

from infer2train.data.labels import read_columns, shown
from infer2train.data.parquet import Shards, find_shards

Write = Callable[..., Path]


def names(shards: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [path.name for path in paths] for split, paths in shards.items()}


@pytest.mark.parametrize(
    ("files", "tests"),
    [
        (["train", "test"], {"test": ["test.parquet"]}),
        (["train", "validation", "test"], {"test": ["test.parquet"], "valid": ["validation.parquet"]}),
        (["train", "valid", "extra"], {"valid": ["valid.parquet"]}),
        (["train", "val_0", "VALID"], {"valid": ["VALID.parquet"], "val": ["val_0.parquet"]}),
        (["train", "validation-00000-of-00001"], {"valid": ["validation-00000-of-00001.parquet"]}),
    ],
)
def test_splits_follow_from_names(tmp_path: Path, files: list[str], tests: dict[str, list[str]]) -> None:
    for name in files:
        (tmp_path / f"{name}.parquet").touch()
    found = names(find_shards(tmp_path))
    assert found == {"train": ["train.parquet"], **tests}
    assert list(found) == ["train", *tests], "in the order of preference"


def test_folders_called_like_splits_hold_their_shards(tmp_path: Path) -> None:
    """As the hub's conversion to Parquet writes them."""
    files = ["train/0000", "train/0001", "test/0000", "validation/0000", "partial-train/0000", "val/a", "train/._0000"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.parquet").touch()
    found = find_shards(tmp_path)
    assert {split: [shown(path) for path in paths] for split, paths in found.items()} == {
        "train": ["train/0000.parquet", "train/0001.parquet"],
        "test": ["test/0000.parquet"],
        "valid": ["validation/0000.parquet"],
        "val": ["val/a.parquet"],
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "got none"),
        (["data/train.parquet"], "there are some in .*data, name that"),
        (["default/train/0000.parquet", "default/test/0000.parquet"], "there are some in .*/default, name that"),
        (["train/0000.parquet"], "must hold test shards: got train/0000.parquet"),
        (["test/0000.parquet"], "must hold train shards: got test/0000.parquet"),
        (["train.parquet"], "must hold test shards"),
        (["test.parquet"], "must hold train shards"),
        (["train-00000-of-00003.parquet", "test.parquet"], r"lacks 2 of 3, the first train-00001-of-00003\.parquet"),
        (
            [
                "train-00000-of-00003-29aec9150af50f9f.parquet",
                "train-00002-of-00003-8d2ac17cd2a7f9bb.parquet",
                "test.parquet",
            ],
            r"lacks 1 of 3, the first train-00001-of-00003-\*\.parquet; download the rest",
        ),
    ],
)
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        Shards("pets", find_shards(tmp_path))


@pytest.mark.parametrize("keep", [0, 3, 0.5])
def test_a_truncated_shard_is_named(tmp_path: Path, write_shard: Write, keep: float) -> None:
    path = write_shard(tmp_path / "train.parquet", [b"x" * 1000], [0])
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"whole Parquet files: .*train\.parquet is not \(.*\); download it again"):
        read_columns([path])
