"""A digest is that of a split as samples are numbered: of labels, of some contents, of nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from infer2train.data.digest import digest
from infer2train.data.images import ImageSplit
from infer2train.data.load import load_encoded


def split(count: int = 200) -> ImageSplit:
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return ImageSplit(pixels, np.arange(count) % 5)


def test_the_same_samples_have_one_however_they_are_kept() -> None:
    whole, ids = split(), np.arange(0, 200, 3)
    apart = whole.part(ids)
    assert digest(apart) == digest(ImageSplit(whole.images, whole.targets[ids], ids)) != digest(whole)


def test_a_label_an_order_and_a_content_count() -> None:
    found = {digest(split())}
    relabelled, swapped, other = (split() for _ in range(3))
    relabelled.targets[7] = 4
    found.add(digest(relabelled))
    found.add(digest(swapped.part(np.r_[5, 1:5, 0, 6:200])))  # of one class
    other.images[199] += 1
    found.add(digest(other))
    assert len(found) == 4


def test_encoded_images_are_told_by_the_content_of_their_files(
    tmp_path: Path,
    plain_images: Callable[..., list[bytes]],
    write_class_folders: Callable[..., Path],
) -> None:
    images = plain_images(range(4))
    names = ("train/a/0.png", "train/a/1.png", "train/b/2.png", "test/a/3.png")
    root = write_class_folders(tmp_path / "data", dict(zip(names, images, strict=True)))
    before = digest(load_encoded(str(root), cache_dir=tmp_path / "cache").train)
    copied = write_class_folders(tmp_path / "copy", dict(zip(names, images, strict=True)))
    assert digest(load_encoded(str(copied), cache_dir=tmp_path / "cache").train) == before
    (root / names[1]).write_bytes(images[3])
    assert digest(load_encoded(str(root), cache_dir=tmp_path / "cache").train) != before
