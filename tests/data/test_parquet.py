import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infer2train.data import once, parquet
from infer2train.data.load import load_data, load_encoded

Write = Callable[..., Path]
Images = Callable[..., list[bytes | None]]


def load(folder: Path, cache_dir: Path, **options: Any) -> Any:
    return load_data(str(folder), cache_dir=cache_dir, progress=False, **options)


def encoded(folder: Path, cache_dir: Path, **options: Any) -> Any:
    return load_encoded(str(folder), cache_dir=cache_dir, progress=False, **options)


def levels(split: Any) -> list[int]:
    """Which plain images a split holds, told by their red."""
    return [int(red) for red in split.images[:, 0, 0, 0]]


def red(split: Any) -> list[int]:
    """The same of a split whose images are decoded on demand."""
    return [int(split.pixels(sample_id)[0, 0, 0]) for sample_id in range(len(split))]


def test_images_and_labels_of_all_shards_in_order(folder: Path, cache_dir: Path) -> None:
    data = load(folder, cache_dir)
    assert (data.name, data.class_names, data.skipped) == ("pets", ("cat", "dog"), 0)
    assert levels(data.train) == [10, 20, 30, 40, 50]
    assert data.train.targets.tolist() == [0, 1, 0, 1, 1]
    assert levels(data.test) == [60, 70]
    assert data.train.images[3, 5, 5].tolist() == [40, 41, 42]
    assert data.train.images.shape == (5, 6, 6, 3)


def test_images_are_mapped_and_cannot_be_written(folder: Path, cache_dir: Path) -> None:
    images = load(folder, cache_dir).train.images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_more_rows_than_a_batch_keep_their_order(
    tmp_path: Path, cache_dir: Path, write_shard: Write, plain_images: Images
) -> None:
    pool = plain_images(range(200), 2, 2)
    wanted = np.random.default_rng(0).integers(0, 200, 3 * once.BATCH_ROWS + 5)
    write_shard(tmp_path / "train.parquet", [pool[level] for level in wanted], [int(k) % 2 for k in wanted])
    write_shard(tmp_path / "test.parquet", pool[:1], [0])
    train = load(tmp_path, cache_dir).train
    assert levels(train) == wanted.tolist()
    assert train.targets.tolist() == (wanted % 2).tolist()


def test_class_names_are_numbers_where_the_schema_has_none(
    tmp_path: Path, cache_dir: Path, write_shard: Write, plain_images: Images
) -> None:
    write_shard(tmp_path / "train.parquet", plain_images([1, 2]), [0, 1], class_names=None)
    write_shard(tmp_path / "val.parquet", plain_images([3]), [2], class_names=None)
    assert load(tmp_path, cache_dir).class_names == ("0", "1", "2")


def write_pets(path: Path, images: Any, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(pa.table({"image": structs, **columns}), path)


def test_names_are_the_classes_and_ids_are_not(tmp_path: Path, cache_dir: Path, plain_images: Images) -> None:
    kinds = ["owl", "cat", "dog", "cat"]
    write_pets(tmp_path / "train.parquet", plain_images([10, 20, 30, 40]), {"image_id": [7, 6, 5, 4], "label": kinds})
    write_pets(tmp_path / "test.parquet", plain_images([50, 60]), {"image_id": [640, 2], "label": ["dog", "owl"]})
    for data, reds in ((load(tmp_path, cache_dir), levels), (encoded(tmp_path, cache_dir), red)):
        assert data.class_names == ("cat", "dog", "owl")
        assert list(zip(reds(data.train), data.train.targets.tolist(), strict=True)) == [
            (10, 2),
            (20, 0),
            (30, 1),
            (40, 0),
        ]
        assert list(zip(reds(data.test), data.test.targets.tolist(), strict=True)) == [(50, 1), (60, 2)]


def test_another_label_column_is_other_data(tmp_path: Path, cache_dir: Path, plain_images: Images) -> None:
    for split, labels in (("train", [0, 1, 2]), ("test", [2, 1, 0])):
        columns = {"label": labels, "is_pet": [True, False, True], "image_id": [5, 6, 7]}
        write_pets(tmp_path / f"{split}.parquet", plain_images([10, 20, 30]), columns)
    for read in (load, encoded):
        default, named, pets = (read(tmp_path, cache_dir, label_column=name) for name in (None, "label", "is_pet"))
        assert default.fingerprint == named.fingerprint != pets.fingerprint
        assert (default.class_names, default.train.targets.tolist()) == (("0", "1", "2"), [0, 1, 2])
        assert (pets.class_names, pets.train.targets.tolist()) == (("false", "true"), [1, 0, 1])


def test_folders_of_shards_as_the_hub_converts_them(tmp_path: Path, cache_dir: Path, plain_images: Images) -> None:
    write_pets(tmp_path / "train" / "0000.parquet", plain_images([10, 20]), {"label": [0, 1]})
    write_pets(tmp_path / "train" / "0001.parquet", plain_images([30]), {"label": [1]})
    write_pets(tmp_path / "test" / "0000.parquet", plain_images([40]), {"label": [1]})
    for read, reds in ((load, levels), (encoded, red)):
        data = read(tmp_path, cache_dir)
        assert (reds(data.train), data.train.targets.tolist()) == ([10, 20, 30], [0, 1, 1])
        assert (reds(data.test), data.test.targets.tolist()) == ([40], [1])
        assert len(data.class_names) == 2
    assert data.train.place(2) == "train/0001.parquet, row 0"


def test_a_shard_that_moves_to_the_test_is_other_data(tmp_path: Path, cache_dir: Path, plain_images: Images) -> None:
    for name, level in (("train/0000", 10), ("train/0001", 20), ("test/0002", 30)):
        write_pets(tmp_path / f"{name}.parquet", plain_images([level]), {"label": [0]})
    assert levels(load(tmp_path, cache_dir).train) == [10, 20]
    (tmp_path / "train" / "0001.parquet").rename(tmp_path / "test" / "0001.parquet")
    data = load(tmp_path, cache_dir)
    assert (levels(data.train), levels(data.test)) == ([10], [20, 30])


def test_images_of_plain_bytes(tmp_path: Path, cache_dir: Path, plain_images: Images) -> None:
    for split in ("train", "test"):
        table = pa.table({"jpg": plain_images([10, 20]), "cls": [1, 0]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    for data, reds in ((load(tmp_path, cache_dir), levels), (encoded(tmp_path, cache_dir), red)):
        assert (reds(data.train), data.train.targets.tolist()) == ([10, 20], [1, 0])


def test_labelled_validation_is_the_test_where_the_test_has_no_labels(
    folder: Path, cache_dir: Path, write_shard: Write, plain_images: Images
) -> None:
    """As the hub has the sets of competitions: the labels of the test are all -1."""
    write_shard(folder / "test-00000-of-00001.parquet", plain_images([90, 100]), [-1, -1])
    with pytest.raises(ValueError, match=r"must have labels: got test-00000-of-00001\.parquet"):
        load(folder, cache_dir)
    write_shard(folder / "validation.parquet", plain_images([110, 120, 130]), [1, 0, 1])
    for read, reds in ((load, levels), (encoded, red)):
        with pytest.warns(RuntimeWarning, match=r"has no labels .* validation\.parquet is the test set"):
            data = read(folder, cache_dir)
        assert (reds(data.test), data.test.targets.tolist()) == ([110, 120, 130], [1, 0, 1])
        assert reds(data.train) == [10, 20, 30, 40, 50]


def test_all_shards_of_the_test_must_be_there(folder: Path, cache_dir: Path) -> None:
    (folder / "test-00000-of-00001.parquet").rename(folder / "test-00000-of-00003.parquet")
    with pytest.raises(ValueError, match=r"lacks 2 of 3, the first test-00001-of-00003\.parquet"):
        load(folder, cache_dir)


@pytest.fixture
def bad_folder(tmp_path: Path, write_shard: Write, plain_images: Images) -> Path:
    """Row 1 of train has a truncated image, row 0 of test none at all."""
    good = plain_images([10, 20, 30, 40])
    assert good[1] is not None
    write_shard(tmp_path / "bad" / "train.parquet", [good[0], good[1][:40], good[2]], [0, 1, 1])
    write_shard(tmp_path / "bad" / "test.parquet", [None, good[3]], [0, 1])
    return tmp_path / "bad"


def test_a_corrupt_image_is_named_with_shard_and_row(bad_folder: Path, cache_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.parquet, row 1 cannot be decoded .*pass --on-bad-image skip"):
        load(bad_folder, cache_dir)
    assert list(cache_dir.glob("images-*")) == []


def test_the_row_of_a_corrupt_image_counts_from_the_start_of_its_shard(
    tmp_path: Path, cache_dir: Path, write_shard: Write, plain_images: Images
) -> None:
    good, bad_row = plain_images([1])[0], once.BATCH_ROWS + 7
    write_shard(tmp_path / "train.parquet", [good] * bad_row + [b"no"] + [good] * 9, [0] * (bad_row + 10))
    write_shard(tmp_path / "test.parquet", [good], [0])
    with pytest.raises(ValueError, match=rf"train\.parquet, row {bad_row} cannot be decoded"):
        load(tmp_path, cache_dir)


def test_skipping_leaves_out_image_and_label_and_counts(bad_folder: Path, cache_dir: Path) -> None:
    for _ in range(2):  # decoded, then from the cache
        data = load(bad_folder, cache_dir, on_bad_image="skip")
        assert (levels(data.train), data.train.targets.tolist()) == ([10, 30], [0, 1])
        assert (levels(data.test), data.test.targets.tolist()) == ([40], [1])
        assert data.skipped == 2


def test_a_cache_with_skipped_images_is_not_used_when_they_are_errors(bad_folder: Path, cache_dir: Path) -> None:
    load(bad_folder, cache_dir, on_bad_image="skip")
    with pytest.raises(ValueError, match="row 1 cannot be decoded"):
        load(bad_folder, cache_dir)


def test_a_split_without_any_good_image_is_refused(
    tmp_path: Path, cache_dir: Path, write_shard: Write, plain_images: Images
) -> None:
    write_shard(tmp_path / "train.parquet", plain_images([1]), [0])
    write_shard(tmp_path / "test.parquet", [b"no", None], [0, 1])
    with pytest.raises(ValueError, match="none that is good in 2 rows of test"):
        load(tmp_path, cache_dir, on_bad_image="skip")


@pytest.fixture
def sizes_folder(tmp_path: Path, write_shard: Write, plain_images: Images) -> Path:
    write_shard(tmp_path / "sizes" / "train.parquet", plain_images([1]) + plain_images([2], 8, 12), [0, 1])
    write_shard(tmp_path / "sizes" / "test.parquet", plain_images([3], 7, 7), [0])
    return tmp_path / "sizes"


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_an_odd_size_is_named_with_the_remedy(sizes_folder: Path, cache_dir: Path, on_bad_image: str) -> None:
    message = r"train\.parquet, row 1 has 12x8, the first has 6x6; pass --image-size 6"
    with pytest.raises(ValueError, match=message):
        load(sizes_folder, cache_dir, on_bad_image=on_bad_image)


def test_images_of_another_size_are_not_decoded_all_at_once(
    tmp_path: Path, cache_dir: Path, write_shard: Write, plain_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may hold gigabytes of pixels."""
    for split in ("train", "test"):
        write_shard(tmp_path / "s" / f"{split}.parquet", plain_images([1]) + 199 * plain_images([2], 8, 12), 200 * [0])
    decoded: list[object] = []
    decode = once.decode
    monkeypatch.setattr(once, "decode", lambda *given: (decoded.append(1), decode(*given))[1])
    with pytest.raises(ValueError, match="row 1 has 12x8"):
        load(tmp_path / "s", cache_dir)
    assert len(decoded) < 40


def test_few_images_at_a_time_are_the_same_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(folder, tmp_path / "one")
    monkeypatch.setattr(once, "_GROUP_BYTES", 2 * whole.train.images[0].nbytes)
    data = load(folder, tmp_path / "other")
    for split in ("train", "test"):
        one, other = getattr(whole, split), getattr(data, split)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.targets, other.targets)


def test_image_size_makes_them_one_size(sizes_folder: Path, cache_dir: Path) -> None:
    data = load(sizes_folder, cache_dir, image_size=4)
    assert data.train.images.shape == (2, 4, 4, 3)
    assert (levels(data.train), levels(data.test)) == ([1, 2], [3])
    assert load(sizes_folder, cache_dir, image_size=5).train.images.shape == (2, 5, 5, 3)


def test_test_images_must_have_the_size_of_the_training_images(
    tmp_path: Path, cache_dir: Path, write_shard: Write, plain_images: Images
) -> None:
    write_shard(tmp_path / "train.parquet", plain_images([1]), [0])
    write_shard(tmp_path / "test.parquet", plain_images([3], 7, 7), [0])
    with pytest.raises(ValueError, match=r"test\.parquet, row 0 has 7x7, the first has 6x6"):
        load(tmp_path, cache_dir)


def test_labels_are_checked_before_anything_is_decoded(
    folder: Path, cache_dir: Path, write_shard: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(folder / "test-00000-of-00001.parquet", [b"not an image"], [9])
    monkeypatch.setattr(once, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"got 9 in test-00000-of-00001\.parquet, row 0"):
        load(folder, cache_dir)


def test_a_shard_damaged_in_its_middle_is_named(folder: Path, cache_dir: Path) -> None:
    path = folder / "train-00001-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet"):
        load(folder, cache_dir)


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_a_senseless_image_size_is_refused(folder: Path, cache_dir: Path, size: int) -> None:
    with pytest.raises(ValueError, match="image_size must be in"):
        load(folder, cache_dir, image_size=size)


def test_a_second_load_decodes_nothing(folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder, cache_dir)
    monkeypatch.setattr(once, "decode", lambda *_: pytest.fail("decoded again"))
    second = load(folder, cache_dir)
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.train.images, first.train.images)


def test_two_loads_at_once_both_succeed(folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_building = threading.Barrier(2)
    rows = parquet.Shards.rows

    def read_together(shards: parquet.Shards) -> Any:
        both_building.wait(timeout=20)
        return rows(shards)

    monkeypatch.setattr(parquet.Shards, "rows", read_together)
    found: list[list[int]] = []
    racers = [threading.Thread(target=lambda: found.append(levels(load(folder, cache_dir).train))) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert found == [[10, 20, 30, 40, 50]] * 2
    assert len(list(cache_dir.glob("images-*"))) == 1
    assert list(cache_dir.glob(".unfinished-*")) == []


@pytest.mark.slow
def test_cifar10_is_whole_and_balanced(data_folder: Path, tmp_path: Path) -> None:
    if not (data_folder / "cifar10").is_dir():
        pytest.skip(f"no cifar10 in {data_folder}")
    data = load(data_folder / "cifar10", tmp_path)
    assert data.train.images.shape == (50_000, 32, 32, 3)
    assert data.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.train.targets).tolist() == [5000] * 10
    assert np.bincount(data.test.targets).tolist() == [1000] * 10
    assert data.class_names[3] == "cat"
    means = data.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.003)
