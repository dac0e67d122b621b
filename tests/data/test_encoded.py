"""Encoded images of both layouts: the pixels that `decode` gives, and errors that name the image."""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infer2train.data import decoding
from infer2train.data.decoding import decode
from infer2train.data.images import EncodedSplit
from infer2train.data.load import load_encoded
from infer2train.data.subsets import hold_out, limit_split

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (20, 12, 3), dtype=np.uint8)
NOBODY = 65534
Make = Callable[..., EncodedSplit]


def file_of(mode: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    "0-rgb.png": file_of("RGB"),
    "1-grey.png": file_of("L"),
    "2-rgba.png": file_of("RGBA"),
    "3-cmyk.jpg": file_of("CMYK", "JPEG"),
    "4-sixteen.png": sixteen_bits(),
    "5-palette.png": file_of("P"),
    "6-photo.JPEG": file_of("RGB", "JPEG"),
}
TRUNCATED = FILES["6-photo.JPEG"][:-200]


@pytest.fixture(params=["class folders", "shards"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def places(layout: str) -> list[str]:
    """Where each file is in that layout, as an error must say it."""
    if layout == "class folders":
        return [f"train/cat/{name}" for name in FILES]
    rows = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    return [f"train-0000{shard}-of-00002.parquet, row {row}" for shard, row in rows]


@pytest.fixture
def make(layout: str, tmp_path: Path, cache_dir: Path, write_class_folders: Any, write_shard: Any) -> Make:
    """The training split of these files, in that layout."""

    def make(files: dict[str, bytes], **options: Any) -> EncodedSplit:
        root, contents = tmp_path / "data", list(files.values())
        if layout == "class folders":
            paths = {f"train/cat/{name}": content for name, content in files.items()}
            write_class_folders(root, {**paths, "test/cat/a.png": contents[0]})
        else:
            write_shard(root / "train-00000-of-00002.parquet", contents[:2], [0] * 2)
            write_shard(root / "train-00001-of-00002.parquet", contents[2:], [0] * 5)
            write_shard(root / "test.parquet", contents[:1], [0])
        here, cache = os.path.relpath(root), Path(os.path.relpath(cache_dir))
        data = load_encoded(here, cache_dir=cache, progress=False, **options)
        return data.train

    return make


def test_whatever_the_mode_they_become_rgb(make: Make) -> None:
    split = make(FILES)
    for sample_id, content in enumerate(FILES.values()):
        pixels = split.pixels(sample_id)
        assert pixels.shape == (20, 12, 3)
        np.testing.assert_array_equal(pixels, decode(content))
        assert split.encoded(sample_id) == content, "the very bytes of the file"
    np.testing.assert_array_equal(split.pixels(0), COLOURS)
    np.testing.assert_array_equal(split.pixels(4), np.stack([COLOURS[..., 0]] * 3, axis=-1))


def test_large_images_are_shrunk(make: Make) -> None:
    assert make(FILES, image_size=6).pixels(0).shape == (10, 6, 3)


def test_a_split_travels_to_another_process_elsewhere(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    split = make(FILES)
    packed = pickle.dumps(split)
    monkeypatch.chdir("/")
    there = pickle.loads(packed)
    np.testing.assert_array_equal(there.pixels(5), split.pixels(5))


def test_parts_keep_their_images_and_their_places(make: Make, places: list[str]) -> None:
    rest, held = hold_out(make(FILES), 3, seed=0)
    few = limit_split(rest, 2, seed=0)
    contents = list(FILES.values())
    in_rest, in_held, in_few = (
        [contents.index(part.encoded(sample_id)) for sample_id in range(len(part))] for part in (rest, held, few)
    )
    assert sorted(in_rest + in_held) == list(range(7))
    assert len(in_few) == 2
    assert set(in_few) < set(in_rest)
    for sample_id, original in enumerate(in_few):
        assert few.place(sample_id).endswith(places[original])


@pytest.mark.parametrize("content", [TRUNCATED, b"not an image"], ids=["truncated", "nonsense"])
def test_an_image_that_cannot_be_decoded_names_itself(make: Make, places: list[str], content: bytes) -> None:
    split = make(FILES | {"3-cmyk.jpg": content})
    with pytest.raises(ValueError, match=rf"{places[3]} cannot be decoded \(.*--decode once --on-bad-image skip"):
        split.pixels(3)
    split.pixels(2), split.pixels(4)


def test_a_bomb_names_itself(make: Make, places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    split = make(FILES)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 12 * 20 - 1)
    with pytest.raises(ValueError, match=rf"{places[6]} cannot be decoded \(12x20 is more than 239 pixels\)"):
        split.pixels(6)


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may read everything; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_names_itself(class_folder: Path, cache_dir: Path) -> None:
    split = load_encoded(str(class_folder), cache_dir=cache_dir).train
    path = class_folder / "train" / "cat" / "b.png"
    path.chmod(0)
    with somebody_else(), pytest.raises(ValueError, match=rf"{path} is not \(Permission denied\)"):
        split.pixels(1)


def test_a_file_that_is_removed_during_a_run_names_itself(class_folder: Path, cache_dir: Path) -> None:
    split = load_encoded(str(class_folder), cache_dir=cache_dir).train
    path = class_folder / "train" / "dog" / "b.png"
    path.unlink()
    with pytest.raises(ValueError, match=rf"as long as a run lasts: {path} is not \(No such file"):
        split.pixels(3)
    split.pixels(2)
