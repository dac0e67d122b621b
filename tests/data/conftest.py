import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def encode(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def plain_images(levels: Sequence[int], height: int = 6, width: int = 6) -> list[bytes | None]:
    """PNG images of one RGB colour each, (level, level + 1, level + 2): every row can be told from the others."""
    return [encode(np.tile(np.array([level, level + 1, level + 2], np.uint8), (height, width, 1))) for level in levels]


def write_shard(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    class_names: Sequence[str] | None = ("cat", "dog"),
    image_column: str = "image",
    label_column: str = "label",
    extra: dict[str, Any] | None = None,
) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = pa.array([content and {"bytes": content, "path": None} for content in images], type=kind)
    table = pa.table({image_column: structs, label_column: pa.array(labels, pa.int64()), **(extra or {})})
    if class_names is not None:
        features = {label_column: {"names": list(class_names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=100)
    return path


def write_class_folders(root: Path, files: dict[str, bytes | None]) -> Path:
    """Image files by their paths in a folder; a path without content becomes a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    return root


@pytest.fixture(name="write_class_folders")
def write_class_folders_fixture() -> Callable[..., Path]:
    return write_class_folders


@pytest.fixture(name="encode")
def encode_fixture() -> Callable[..., bytes]:
    return encode


@pytest.fixture(name="plain_images")
def plain_images_fixture() -> Callable[..., list[bytes | None]]:
    return plain_images


@pytest.fixture(name="write_shard")
def write_shard_fixture() -> Callable[..., Path]:
    return write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two train shards of 3 + 2 images and a test shard of 2."""
    here = tmp_path / "pets"
    write_shard(here / "train-00000-of-00002.parquet", plain_images([10, 20, 30]), [0, 1, 0])
    write_shard(here / "train-00001-of-00002.parquet", plain_images([40, 50]), [1, 1])
    write_shard(here / "test-00000-of-00001.parquet", plain_images([60, 70]), [0, 1])
    return here


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """What `folder` holds, as class folders; ids differ, since they follow the classes."""
    names = ["train/cat/b.png", "train/dog/a.png", "train/cat/a.PNG", "train/dog/c.png", "train/dog/b.png"]
    names += ["test/cat/x.png", "test/dog/y.png"]
    images = plain_images([10, 20, 30, 40, 50, 60, 70])
    return write_class_folders(tmp_path / "pets-in-folders", dict(zip(names, images, strict=True)))


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"
