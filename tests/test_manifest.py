"""A folder is read only if it is what was written: forged and foreign manifests, links and pipes are refused."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infer2train.checkpoint.manifest import CHECKSUM, MANIFEST, DamageError, read_folder, write_folder

FILES = {"a.bin": b"\x00" * 300, "b.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "written"
    folder.mkdir()
    write_folder(folder, 7, {name: lambda path, data=data: path.write_bytes(data) for name, data in FILES.items()})
    return folder


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and put a checksum beside it that fits, as neither damage nor accident would."""
    fields = json.loads((folder / MANIFEST).read_bytes())
    changed = change(fields)
    content = json.dumps(fields if changed is None else changed).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / CHECKSUM).write_text(f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n")


def test_what_was_written_is_read(folder: Path) -> None:
    assert read_folder(folder, 7, FILES) == FILES
    fields = json.loads((folder / MANIFEST).read_bytes())
    assert fields["step"] == 7
    assert fields["format"] == 1
    assert fields["files"]["b.json"] == {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    assert set(fields["versions"]) == {"infer2train", "torch", "numpy"}


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_the_checksum_is_what_sha256sum_reads(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUM], cwd=folder, check=True, capture_output=True)


def test_more_files_do_no_harm(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    assert read_folder(folder, 7, FILES) == FILES


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda f: f["files"].update({"../../secret": f["files"]["a.bin"]}),
            "must name a.bin, b.json and nothing else",
        ),
        (lambda f: f["files"].update({"/etc/passwd": f["files"]["a.bin"]}), "must name a.bin, b.json and nothing else"),
        (lambda f: f["files"].pop("a.bin"), "must name a.bin"),
        (lambda f: f["files"]["a.bin"].update(bytes=10**15), "a.bin has 300 bytes instead of"),
        (lambda f: f["files"]["a.bin"].update(bytes=-1), "a.bin has 300 bytes instead of"),
        (lambda f: f["files"]["a.bin"].update(bytes="many"), "does not describe"),
        (lambda f: f["files"]["a.bin"].pop("sha256"), "does not describe"),
        (lambda f: f.update(files=[]), "must name"),
        (lambda f: f.update(format=2), "has format 2; this infer2train reads format 1"),
        (lambda f: f.update(step=8), "is that of step 8"),
        (lambda f: {}, "does not describe"),
        (lambda f: [1], "does not describe"),
        (lambda f: None, None),
    ],
)
def test_a_forged_or_foreign_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], sentence: str | None
) -> None:
    if sentence is None:
        forge(folder, lambda fields: None)
        assert read_folder(folder, 7, FILES) == FILES, "forge() itself must not be what is refused"
        return
    forge(folder, lambda fields: result if isinstance(result := change(fields), list) or result == {} else None)
    with pytest.raises(DamageError, match=sentence):
        read_folder(folder, 7, FILES)


@pytest.mark.parametrize("name", [*FILES, MANIFEST, CHECKSUM])
def test_links_folders_and_pipes_are_refused(folder: Path, name: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    for make in (lambda path: path.symlink_to(elsewhere), os.mkfifo, os.mkdir):
        make(folder / name)
        with pytest.raises(DamageError, match=f"{name} is not a plain file"):
            read_folder(folder, 7, FILES)
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
    elsewhere.rename(folder / name)
    assert read_folder(folder, 7, FILES) == FILES


def test_a_link_to_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(DamageError, match="not a folder"):
        read_folder(tmp_path / "link", 7, FILES)


@pytest.mark.parametrize("name", [*FILES, MANIFEST, CHECKSUM])
def test_a_file_that_grew_is_not_read(folder: Path, name: str) -> None:
    # A sparse file of a terabyte: reading it before its size is compared would end the test, and the machine.
    os.truncate(folder / name, 1 << 40)
    with pytest.raises(DamageError, match=f"{name} has {1 << 40} bytes"):
        read_folder(folder, 7, FILES)
