import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from infer2train.data import fingerprints
from infer2train.data.fingerprints import INDEX, fingerprint


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files that last changed long ago."""
    paths = [tmp_path / "data" / name for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(path.name.encode() * 100)
        age(path)
    return paths


def age(path: Path, seconds: float = 1000.0) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read, in order."""
    names: list[str] = []
    file_digest = hashlib.file_digest

    def counting(file: Any, *arguments: Any) -> Any:
        names.append(Path(file.name).name)
        return file_digest(file, *arguments)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return names


def test_it_changes_with_content_name_and_options_only(files: list[Path], cache_dir: Path) -> None:
    base = fingerprint(files, {"size": 1}, cache_dir)
    assert fingerprint(files[::-1], {"size": 1}, cache_dir) == base
    assert fingerprint(files, {"size": 2}, cache_dir) != base
    assert fingerprint(files[:1], {"size": 1}, cache_dir) != base
    elsewhere = files[0].parent.rename(files[0].parent.with_name("moved"))
    moved = [elsewhere / path.name for path in files]
    assert fingerprint(moved, {"size": 1}, cache_dir) == base
    assert fingerprint([moved[0], moved[1].rename(elsewhere / "c")], {"size": 1}, cache_dir) != base


def test_content_of_the_same_size_changes_it(files: list[Path], cache_dir: Path) -> None:
    base = fingerprint(files, {}, cache_dir)
    files[1].write_bytes(b"c" * 100)
    age(files[1], 500)
    assert fingerprint(files, {}, cache_dir) != base


def test_unchanged_files_are_not_read_again(files: list[Path], cache_dir: Path, hashed: list[str]) -> None:
    base = fingerprint(files, {}, cache_dir)
    assert fingerprint(files, {}, cache_dir) == base
    assert hashed == ["a", "b"]


def test_a_touched_file_is_read_again(files: list[Path], cache_dir: Path, hashed: list[str]) -> None:
    base = fingerprint(files, {}, cache_dir)
    age(files[0], 999)
    assert fingerprint(files, {}, cache_dir) == base
    assert hashed == ["a", "b", "a"]


def test_a_file_that_has_only_just_changed_is_not_remembered(
    files: list[Path], cache_dir: Path, hashed: list[str]
) -> None:
    age(files[0], 0)
    for _ in range(2):
        fingerprint(files, {}, cache_dir)
    assert hashed == ["a", "b", "a"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"/x": 3}'])
def test_a_damaged_index_only_costs_the_hashing(
    files: list[Path], cache_dir: Path, hashed: list[str], content: str
) -> None:
    base = fingerprint(files, {}, cache_dir)
    (cache_dir / INDEX).write_text(content)
    assert fingerprint(files, {}, cache_dir) == base
    assert fingerprint(files, {}, cache_dir) == base
    assert hashed == ["a", "b"] * 2


def test_hashes_of_other_files_are_kept(files: list[Path], cache_dir: Path, hashed: list[str]) -> None:
    for path in (*files, *files):
        fingerprint([path], {}, cache_dir)
    assert hashed == ["a", "b"]


def test_an_index_that_cannot_be_written_only_costs_the_hashing(
    files: list[Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cache of others, which may be read alone."""

    def refused(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fingerprints, "write_json", refused)
    assert fingerprint(files, {}, cache_dir) == fingerprint(files, {}, cache_dir)
