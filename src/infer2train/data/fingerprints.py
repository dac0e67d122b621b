"""Fingerprints of files: SHA-256 of their bytes, remembered while size and time of change stay as they were.

Hashing a data set costs about a second for each gigabyte. The index beside the cache keeps each file's hash with its
path, size and time of change in nanoseconds, so a second start reads only the directory. The index is a convenience:
losing it, or a damaged one, only costs the hashing.
"""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INDEX = "hashes.json"
_SETTLED_NS = 2_000_000_000
"""A file changed more recently than this may change again within one tick of the clock: not remembered."""


def fingerprint(files: Sequence[Path], options: Mapping[str, Any], index_dir: Path) -> str:
    """SHA-256 of the options, then name, size and SHA-256 of each file in the order of their names; hexadecimal.

    Args:
        files: in any order, but those of one name always in the same; their folders do not count, so a copied data set
            keeps its fingerprint.
        options: whatever else decides the result; JSON types.
        index_dir: where hashes are remembered.
    """
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = dict(json.loads((index_dir / INDEX).read_bytes()))
    digests = {path: _digest(path, known) for path in sorted(files, key=lambda path: path.name)}
    settled = time.time_ns() - _SETTLED_NS
    entries = {str(path.resolve()): list(entry) for path, entry in digests.items() if entry[1] < settled}
    if any(known.get(path) != entry for path, entry in entries.items()):
        with contextlib.suppress(OSError):  # a cache that others made may be read alone
            write_json(index_dir / INDEX, known | entries)
    listed = [[path.name, size, digest] for path, (size, _, digest) in digests.items()]
    return hashlib.sha256(json.dumps([dict(options), listed], sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Replace a small file as a whole; of two processes the later one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def _digest(path: Path, known: Mapping[str, Any]) -> tuple[int, int, str]:
    """Size, time of change (ns) and SHA-256 of a file, the last from the index where it still holds."""
    stat = path.stat()
    match known.get(str(path.resolve())):
        case [int(size), int(mtime_ns), str(digest)] if (size, mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return size, mtime_ns, digest
    with path.open("rb") as file:
        return stat.st_size, stat.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()
