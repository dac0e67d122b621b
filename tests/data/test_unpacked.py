"""Shards unpacked once: the bytes of every row, in an entry of the cache that is checked like the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer2train.data import parquet
from infer2train.data.load import load_encoded

Write = Callable[..., Path]


def load(folder: Path, cache_dir: Path, **options: Any) -> Any:
    return load_encoded(str(folder), cache_dir=cache_dir, progress=False, **options)


def red(split: Any) -> list[int]:
    return [int(split.pixels(sample_id)[0, 0, 0]) for sample_id in range(len(split))]


def test_images_and_labels_of_all_shards_in_order(folder: Path, cache_dir: Path) -> None:
    data = load(folder, cache_dir)
    assert (data.name, data.class_names, data.skipped) == ("pets", ("cat", "dog"), 0)
    assert (red(data.train), data.train.targets.tolist()) == ([10, 20, 30, 40, 50], [0, 1, 0, 1, 1])
    assert (red(data.test), data.test.targets.tolist()) == ([60, 70], [0, 1])


def test_many_rows_of_many_sizes(tmp_path: Path, cache_dir: Path, write_shard: Write) -> None:
    """More than a batch and a row group, gaps among them."""
    rng = np.random.default_rng(0)
    contents = [rng.bytes(size) if size else None for size in rng.integers(0, 50, 700).tolist()]
    write_shard(tmp_path / "train-00000-of-00002.parquet", contents[:603], [0] * 603)
    write_shard(tmp_path / "train-00001-of-00002.parquet", contents[603:], [1] * 97)
    write_shard(tmp_path / "test.parquet", [b"x"], [0])
    train = load(tmp_path, cache_dir).train
    assert [train.encoded(sample_id) for sample_id in range(700)] == contents
    assert [train.place(sample_id) for sample_id in (0, 602, 603, 699)] == [
        "train-00000-of-00002.parquet, row 0",
        "train-00000-of-00002.parquet, row 602",
        "train-00001-of-00002.parquet, row 0",
        "train-00001-of-00002.parquet, row 96",
    ]


def test_a_second_load_unpacks_nothing(folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder, cache_dir)
    monkeypatch.setattr(parquet, "unpack", lambda *_, **__: pytest.fail("unpacked again"))
    second = load(folder, cache_dir, image_size=3)
    assert second.fingerprint == first.fingerprint
    assert red(second.train) == red(first.train)
    assert second.train.pixels(0).shape == (3, 3, 3)


@pytest.mark.parametrize("damage", ["truncate", "ends", "remove"])
def test_a_damaged_entry_is_made_again(folder: Path, cache_dir: Path, damage: str) -> None:
    load(folder, cache_dir)
    (entry,) = cache_dir.glob("encoded-*")
    path = entry / ("train-ends.npy" if damage == "ends" else "train-encoded.npy")
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if damage == "truncate" else content[:-8] + bytes(8))
    assert red(load(folder, cache_dir).train) == [10, 20, 30, 40, 50]
    assert path.read_bytes() == content
    assert [path.name for path in cache_dir.iterdir() if path.is_dir()] == [entry.name]


def test_a_label_that_is_no_class_leaves_nothing_behind(folder: Path, cache_dir: Path, write_shard: Write) -> None:
    write_shard(folder / "test-00000-of-00001.parquet", [b"x"], [9])
    with pytest.raises(ValueError, match=r"got 9 in test-00000-of-00001\.parquet, row 0"):
        load(folder, cache_dir)
    assert [path for path in cache_dir.iterdir() if path.is_dir()] == []


def test_a_split_without_rows(folder: Path, cache_dir: Path, write_shard: Write) -> None:
    write_shard(folder / "test-00000-of-00001.parquet", [], [])
    with pytest.raises(ValueError, match="got no rows of test"):
        load(folder, cache_dir)
