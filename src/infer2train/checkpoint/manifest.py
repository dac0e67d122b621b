"""A folder of files of which every bit is checked: written to the disk with a manifest, read back or refused.

Between `state`, which says what the files hold, and `checkpoint`, which says where the folders lie. The manifest is
JSON with each file's size and SHA-256; beside it `manifest.sha256` holds the manifest's own SHA-256 in the form that
`sha256sum --check` reads, and is compared whole, so that a flipped bit anywhere, in the checksum too, is found. This
guards against damage, not against a forger: whoever can write a folder can write a manifest for it.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer2train import __version__

FORMAT = 1
MANIFEST, CHECKSUM = "manifest.json", "manifest.sha256"
_MAX_MANIFEST_BYTES = 1 << 16


class DamageError(Exception):
    """What is wrong with a folder, beginning with the file's name."""


def write_folder(folder: Path, step: int, writers: Mapping[str, Callable[[Path], Any]]) -> None:
    """Write files and their manifest into an empty folder, and wait until all of it is on the disk.

    Args:
        folder: exists, is empty.
        step: goes into the manifest, so that a renamed folder is noticed.
        writers: for each file's name what writes it at a path.

    Raises:
        OSError: writing failed; `filename` is the file's.
    """
    for name, write in writers.items():
        _write(folder / name, write)
    manifest = {
        "format": FORMAT,
        "step": int(step),
        "versions": {"infer2train": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "files": {name: _described(folder / name) for name in writers},
    }
    content = (json.dumps(manifest, indent=2) + "\n").encode()
    _write(folder / MANIFEST, lambda path: path.write_bytes(content))
    _write(folder / CHECKSUM, lambda path: path.write_bytes(_checksum_line(content)))
    sync(folder)


def read_folder(folder: Path, step: int, names: Collection[str]) -> dict[str, bytes]:
    """The contents of a folder's files, as they were written; what else lies in it is not looked at.

    Sizes are compared before anything is read. The manifest must name exactly the files asked for, so that no path in
    it is ever followed, and links are refused.

    Raises:
        DamageError: a file is not as it was written, or the folder is not that of `step`.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DamageError("it is not a folder; links are not followed")
    manifest = _content(folder / MANIFEST, _MAX_MANIFEST_BYTES)
    checksum = _checksum_line(manifest)
    if _content(folder / CHECKSUM, len(checksum)) != checksum:
        raise DamageError(f"{MANIFEST} and {CHECKSUM} do not agree, so one of the two is damaged")
    contents = {}
    for name, (size, digest) in _described_files(manifest, step, names).items():
        content = _content(folder / name, size)
        if len(content) != size:
            raise DamageError(f"{name} has {len(content)} bytes instead of {size}")
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise DamageError(f"{name} has SHA-256 {found[:16]}… instead of {digest[:16]}…")
        contents[name] = content
    return contents


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    try:
        write(path)
        sync(path)
    except OSError as error:
        # A failing write or fsync, unlike a failing open, does not say of which file.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _checksum_line(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _described_files(manifest: bytes, step: int, names: Collection[str]) -> dict[str, tuple[int, str]]:
    """(size, SHA-256) of each file, from a manifest that is undamaged but may be of another version, or forged."""
    try:
        fields = json.loads(manifest)
        if fields["format"] != FORMAT:
            raise DamageError(f"{MANIFEST} has format {fields['format']!r}; this infer2train reads format {FORMAT}")
        if fields["step"] != step:
            raise DamageError(f"{MANIFEST} is that of step {fields['step']!r}; the folder was renamed")
        if set(fields["files"]) != set(names):
            raise DamageError(f"{MANIFEST} must name {', '.join(names)} and nothing else: got {list(fields['files'])}")
        return {name: (int(file["bytes"]), str(file["sha256"])) for name, file in fields["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{MANIFEST} does not describe a checkpoint ({error!r})") from error


def _content(path: Path, max_bytes: int) -> bytes:
    """The bytes of a plain file, whose size is asked before anything is read."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise DamageError(f"{path.name} is not a plain file; links are not followed")
        if status.st_size > max_bytes:
            raise DamageError(f"{path.name} has {status.st_size} bytes instead of at most {max_bytes}")
        return path.read_bytes()
    except OSError as error:
        raise DamageError(f"{path.name} cannot be read: {error.strerror}") from error
