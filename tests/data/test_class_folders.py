"""Class folders: which files become which samples, and what is refused before anything is decoded."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import features

from infer2train.data import once
from infer2train.data.class_folders import FolderImages
from infer2train.data.images import DataError
from infer2train.data.load import load_data, load_encoded

Write = Callable[..., Path]
Images = Callable[..., list[bytes | None]]


def encoded(root: Path, cache_dir: Path) -> Any:
    return load_encoded(str(root), cache_dir=cache_dir, progress=False)


def levels(split: Any) -> list[int]:
    """Which plain images a split decodes to, told by their red."""
    return [int(split.pixels(sample_id)[0, 0, 0]) for sample_id in range(len(split))]


def test_samples_are_sorted_by_class_and_name(class_folder: Path, cache_dir: Path) -> None:
    data = encoded(class_folder, cache_dir)
    assert (data.name, data.class_names, data.skipped) == ("pets-in-folders", ("cat", "dog"), 0)
    assert levels(data.train) == [30, 10, 20, 50, 40]
    assert data.train.targets.tolist() == [0, 0, 1, 1, 1]
    assert (levels(data.test), data.test.targets.tolist()) == ([60, 70], [0, 1])
    assert not cache_dir.exists(), "nothing is written"


def test_decoded_once_they_are_the_same_images(
    class_folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(str(class_folder), cache_dir=cache_dir, progress=False)
    assert data.train.images[:, 0, 0, 0].tolist() == levels(encoded(class_folder, cache_dir).train)
    assert data.train.images[0, 5, 5].tolist() == [30, 31, 32]
    assert (data.train.targets.tolist(), data.test.targets.tolist()) == ([0, 0, 1, 1, 1], [0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(once, "decode", lambda *_: pytest.fail("decoded again"))
        assert load_data(str(class_folder), cache_dir=cache_dir, progress=False).fingerprint == data.fingerprint
    path = class_folder / "train" / "dog" / "a.png"
    content = (class_folder / "train" / "dog" / "b.png").read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(0, 1))
    again = load_data(str(class_folder), cache_dir=cache_dir, progress=False)
    assert again.train.images[2, 0, 0, 0] == 50, "a changed file is decoded anew"


def test_other_pixels_of_the_same_size_and_time_are_decoded_anew(
    tmp_path: Path, cache_dir: Path, write_class_folders: Write, encode: Any
) -> None:
    """As two versions of uncompressed files have them that were unpacked with their times set to one."""
    found = []
    for version, level in (("first", 10), ("second", 200)):
        image = encode(np.full((6, 6, 3), level, np.uint8), kind="BMP")
        names = [f"{split}/{kind}/a.bmp" for split in ("train", "test") for kind in ("cat", "dog")]
        root = write_class_folders(tmp_path / version, dict.fromkeys(names, image))
        for name in names:
            os.utime(root / name, ns=(0, 0))
        data = load_data(str(root), cache_dir=cache_dir, progress=False)
        assert data.train.images[0, 0, 0, 0] == level
        found.append((data.fingerprint, encoded(root, cache_dir).fingerprint))
    assert not set(found[0]) & set(found[1])


def test_a_bad_image_is_named_or_left_out_when_decoded_once(class_folder: Path, cache_dir: Path) -> None:
    bad = class_folder / "train" / "dog" / "b.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{bad} cannot be decoded.*pass --on-bad-image skip"):
        load_data(str(class_folder), cache_dir=cache_dir, progress=False)
    data = load_data(str(class_folder), cache_dir=cache_dir, progress=False, on_bad_image="skip")
    assert (data.train.targets.tolist(), data.skipped) == ([0, 0, 1, 1], 1)


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_other_names_of_the_test(class_folder: Path, cache_dir: Path, name: str) -> None:
    (class_folder / "test").rename(class_folder / name)
    assert levels(encoded(class_folder, cache_dir).test) == [60, 70]


def test_the_test_is_preferred_to_validation(class_folder: Path, cache_dir: Path, write_class_folders: Write) -> None:
    write_class_folders(class_folder, {"val/cat/x.png": b"no image"})
    assert levels(encoded(class_folder, cache_dir).test) == [60, 70]


def test_what_is_hidden_is_not_looked_at(class_folder: Path, cache_dir: Path, write_class_folders: Write) -> None:
    hidden = {"train/.DS_Store": b"x", "train/.git/a.png": b"x", "train/cat/._a.png": b"x", "train/cat/.x/a.png": b"x"}
    before = encoded(class_folder, cache_dir)
    write_class_folders(class_folder, hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = encoded(class_folder, cache_dir)
    assert levels(after.train) == levels(before.train)
    assert after.fingerprint == before.fingerprint


def test_what_is_passed_over_is_counted(class_folder: Path, cache_dir: Path, write_class_folders: Write) -> None:
    names = ["train/readme.txt", "train/lost.PNG", "train/cat/a.heic", "train/cat/deeper/b.HEIC", "train/dog/notes"]
    before = encoded(class_folder, cache_dir)
    write_class_folders(class_folder, dict.fromkeys([*names, "test/dog/c.heic"], b"x"))
    message = (
        rf"files of {class_folder} that are passed over: 3 \.heic, 1 \.png in no class folder, 1 \.txt in no class "
        r"folder, 1 without a suffix \(images are \.jpg "
    )
    with pytest.warns(RuntimeWarning, match=message):
        after = encoded(class_folder, cache_dir)
    assert levels(after.train) == levels(before.train)
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((".jfif", "JPEG"), (".JPE", "JPEG"), (".webp", "WEBP"), (".TIF", "TIFF"), (".Bmp", "BMP"), (".pnm", "PPM")),
        pytest.param(".avif", "AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF here")),
    ],
)
def test_images_of_every_suffix(
    class_folder: Path, cache_dir: Path, write_class_folders: Write, encode: Any, suffix: str, kind: str
) -> None:
    image = encode(np.full((6, 6, 3), 90, np.uint8), kind=kind)
    write_class_folders(class_folder, {f"train/cat/c{suffix}": image, f"test/dog/c{suffix}": image})
    data = encoded(class_folder, cache_dir)
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert levels(data.train)[2] == pytest.approx(90, abs=2)
    assert data.test.targets.tolist() == [0, 1, 1]


def test_images_below_a_class_are_of_that_class(
    class_folder: Path, cache_dir: Path, write_class_folders: Write, plain_images: Images
) -> None:
    names = ["train/cat/aa/z.png", "train/dog/images/a.png", "train/dog/images/more/b.png", "test/cat/sub/y.png"]
    write_class_folders(class_folder, dict(zip(names, plain_images([100, 110, 120, 130]), strict=True)))
    data = encoded(class_folder, cache_dir)
    assert levels(data.train) == [30, 100, 10, 20, 50, 40, 110, 120]
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (levels(data.test), data.test.targets.tolist()) == ([130, 60, 70], [0, 0, 1])
    assert data.train.place(7) == str(class_folder / "train/dog/images/more/b.png")
    once = load_data(str(class_folder), cache_dir=cache_dir, progress=False)
    assert once.train.images[:, 0, 0, 0].tolist() == levels(data.train)


def test_a_class_of_nested_folders_only(class_folder: Path, cache_dir: Path) -> None:
    """Tiny ImageNet's layout: train/CLASS/images/*.JPEG."""
    for path in list((class_folder / "train").iterdir()):
        path.rename(class_folder / "images")
        path.mkdir()
        (class_folder / "images").rename(path / "images")
    assert levels(encoded(class_folder, cache_dir).train) == [30, 10, 20, 50, 40]


def test_a_folder_that_holds_itself(class_folder: Path, cache_dir: Path) -> None:
    (class_folder / "train" / "cat" / "again").symlink_to(class_folder / "train" / "cat")
    refused(class_folder, cache_dir, r"folders must not hold themselves: .*train/cat/again links to one")


def test_links_are_followed(class_folder: Path, cache_dir: Path, tmp_path: Path) -> None:
    (class_folder / "train" / "cat").rename(tmp_path / "elsewhere")
    (class_folder / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    (class_folder / "train" / "dog" / "z.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert levels(encoded(class_folder, cache_dir).train) == [30, 10, 20, 50, 40, 10]


def test_names_of_any_bytes(class_folder: Path, cache_dir: Path) -> None:
    path = class_folder / "train" / "cat" / "b.png"
    path.rename(path.with_name(os.fsdecode(b"\xff\xfe \xc3\xa4.png")))
    assert sorted(levels(encoded(class_folder, cache_dir).train)) == [10, 20, 30, 40, 50]


def test_a_class_must_have_a_name_that_can_be_written(class_folder: Path, cache_dir: Path) -> None:
    path = class_folder / "train" / "cat"
    path.rename(path.with_name(os.fsdecode(b"caf\xe9")))
    with pytest.raises(DataError, match=r"in UTF-8: got b'caf\\xe9' in .*; rename it"):
        encoded(class_folder, cache_dir)


def test_the_fingerprint_follows_names_sizes_and_times(class_folder: Path, cache_dir: Path) -> None:
    path = class_folder / "train" / "cat" / "b.png"
    seen = {encoded(class_folder, cache_dir).fingerprint}
    assert seen == {encoded(class_folder, cache_dir).fingerprint}
    os.utime(path, ns=(0, 12345))
    seen.add(encoded(class_folder, cache_dir).fingerprint)
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(0, 12345))
    seen.add(encoded(class_folder, cache_dir).fingerprint)
    path.rename(path.with_name("b2.png"))
    seen.add(encoded(class_folder, cache_dir).fingerprint)
    assert len(seen) == 4


def test_a_million_names_travel_light(tmp_path: Path) -> None:
    names = np.array([f"n01440764_{number:05d}.JPEG".encode() for number in range(10_000)])
    images = FolderImages(tmp_path, ("fish",), np.zeros(10_000, np.int64), names)
    assert len(pickle.dumps(images)) < 40 * 10_000
    assert pickle.loads(pickle.dumps(images)).place(7) == str(tmp_path / "fish" / "n01440764_00007.JPEG")


def refused(root: Path, cache_dir: Path, said: str) -> None:
    for load in (load_encoded, load_data):
        with pytest.raises(ValueError, match=said):
            load(str(root), cache_dir=cache_dir, progress=False)


def test_a_folder_of_nothing_says_what_it_must_hold(tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty", cache_dir, r"got none in .*empty; name a folder of train\*\.parquet .*train/CLASS/\*\.jpg"
    )


def test_training_images_without_classes(cache_dir: Path, tmp_path: Path, write_class_folders: Write) -> None:
    root = write_class_folders(tmp_path / "flat", {"train/a.png": b"x", "test/cat/a.png": b"x"})
    refused(root, cache_dir, r"train must hold one folder for each class: got none in .*flat/train; move")


def test_training_images_without_a_test(class_folder: Path, cache_dir: Path) -> None:
    (class_folder / "test").rename(class_folder / "holdout")
    refused(class_folder, cache_dir, r"images to test on beside train: got none in .*add test or validation")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images(class_folder: Path, cache_dir: Path, split: str) -> None:
    for path in (class_folder / split / "dog").iterdir():
        path.unlink()
    refused(class_folder, cache_dir, rf"every class folder must hold images: got none in .*{split}/dog")


def test_a_class_of_files_that_are_no_images_says_so(class_folder: Path, cache_dir: Path) -> None:
    for path in (class_folder / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    refused(class_folder, cache_dir, r"every class folder must hold images: got only 3 \.heic in .*train/dog")


@pytest.mark.parametrize("name", ["x.png", "images/x.png"])
def test_an_unlabelled_test_gives_way_to_labelled_images(
    class_folder: Path, cache_dir: Path, write_class_folders: Write, name: str
) -> None:
    """ImageNet's own layout: test/*.JPEG has no classes, val/CLASS/*.JPEG has."""
    (class_folder / "test").rename(class_folder / "val")
    write_class_folders(class_folder, {f"test/{name}": b"x"})
    with pytest.warns(RuntimeWarning, match=r"pets-in-folders/test have no labels .*pets-in-folders/val are the test"):
        data = encoded(class_folder, cache_dir)
    assert (levels(data.test), data.test.targets.tolist()) == ([60, 70], [0, 1])


def test_a_class_that_only_the_test_has(class_folder: Path, cache_dir: Path) -> None:
    (class_folder / "test" / "dog").rename(class_folder / "test" / "wolf")
    refused(class_folder, cache_dir, r"every class of test must be one of train: got wolf .*1 such classes")


def test_a_label_column_is_of_shards(class_folder: Path, cache_dir: Path) -> None:
    for load in (load_encoded, load_data):
        with pytest.raises(ValueError, match=r"a column of Parquet shards: got species for .*leave --label-column out"):
            load(str(class_folder), cache_dir=cache_dir, label_column="species", progress=False)


def test_a_class_that_only_the_training_has(class_folder: Path, cache_dir: Path) -> None:
    (class_folder / "test" / "cat" / "x.png").unlink()
    (class_folder / "test" / "cat").rmdir()
    data = encoded(class_folder, cache_dir)
    assert (data.class_names, data.test.targets.tolist()) == (("cat", "dog"), [1])


def test_an_image_that_is_no_file(class_folder: Path, cache_dir: Path) -> None:
    (class_folder / "train" / "cat" / "gone.jpg").symlink_to("nowhere")
    refused(class_folder, cache_dir, r"train/cat/gone\.jpg is neither; remove it, or mend the link")


def test_two_layouts_at_once(class_folder: Path, cache_dir: Path) -> None:
    (class_folder / "train.parquet").write_bytes(b"x")
    refused(class_folder, cache_dir, "Parquet shards or class folders: got both in")
    (class_folder / "train.parquet").rename(class_folder / "train" / "0000.parquet")
    refused(class_folder, cache_dir, "Parquet shards or class folders: got both in")


def test_a_known_name_is_decoded_already(cache_dir: Path) -> None:
    with pytest.raises(ValueError, match="on-demand is for folders of images: got 'digits'"):
        load_encoded("digits", cache_dir=cache_dir)


@pytest.mark.parametrize("size", [0, 5000])
def test_a_senseless_image_size(class_folder: Path, folder: Path, cache_dir: Path, size: int) -> None:
    for root in (class_folder, folder):
        with pytest.raises(ValueError, match="image_size must be in"):
            load_encoded(str(root), cache_dir=cache_dir, image_size=size, progress=False)
