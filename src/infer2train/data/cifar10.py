"""CIFAR-10 from its official binary archive: 50,000 + 10,000 RGB images of 32x32 pixels in ten classes.

The archive is downloaded once and checked; its members are read in place, nothing is extracted. A later start maps the
decoded cache and needs neither the network nor the archive.
"""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from infer2train.data.cache import FORMAT, Contents, growing_array
from infer2train.data.images import DataError, ImageData
from infer2train.data.once import open_decoded

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
MEMBERS = {"train": tuple(f"data_batch_{part}.bin" for part in range(1, 6)), "test": ("test_batch.bin",)}
CLASS_NAMES = "batches.meta.txt"
SIDE, NUM_CLASSES = 32, 10
RECORD_BYTES = 1 + 3 * SIDE * SIDE
"""One byte of label, then the red, green and blue planes."""

_OTHER_WAY = "or point --data to a folder of Parquet shards of CIFAR-10"
_TIMEOUT_SECONDS = 30


def load(*, cache_dir: Path, progress: bool = True, url: str = URL, md5: str = MD5) -> ImageData:
    """CIFAR-10, downloaded if need be, or a `DataError` that says why it cannot be.

    Args:
        cache_dir: of the archive (170 MB, in `downloads`) and of the decoded arrays (184 MB).
        progress: show the download's progress on standard error.
        url: where the archive is; another one must hold the same members.
        md5: hexadecimal digest of the archive.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    # The archive's own digest stands for its content, so a warm start does not read 170 MB to find the cache's entry.
    fingerprint = hashlib.sha256(f"cifar10 {FORMAT} md5:{md5}".encode()).hexdigest()

    def build(folder: Path) -> Contents:
        return _unpack(_archive(cache_dir / "downloads", url, md5, progress), folder)

    return open_decoded("cifar10", cache_dir, fingerprint, build)


def _archive(folder: Path, url: str, md5: str, progress: bool) -> Path:
    """The checked archive, downloaded unless it is there already."""
    import pooch
    from requests import RequestException

    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 20, timeout=_TIMEOUT_SECONDS)
    try:
        path = pooch.retrieve(url, f"md5:{md5}", fname=f"{md5}.tar.gz", path=folder, downloader=downloader)
    except RequestException as error:
        raise DataError(
            f"CIFAR-10 must be downloaded once, and {url} cannot be had ({type(error).__name__}); connect this "
            f"machine for the first start, {_OTHER_WAY}"
        ) from error
    except ValueError as error:
        raise DataError(
            f"the CIFAR-10 archive must have MD5 {md5}, and what {url} sent has not, so it was deleted; try again, "
            f"{_OTHER_WAY}"
        ) from error
    return Path(path)


def _unpack(archive: Path, folder: Path) -> Contents:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            for split, names in MEMBERS.items():
                with (
                    growing_array(folder / f"{split}-images.npy") as images,
                    growing_array(folder / f"{split}-targets.npy") as targets,
                ):
                    for name in names:
                        pixels, labels = _records(_read(tar, members, name), name)
                        images(pixels), targets(labels)
            class_names = tuple(_read(tar, members, CLASS_NAMES).decode().split())
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"the CIFAR-10 archive must be a whole .tar.gz: {archive} is not ({error}); delete it"
        ) from error
    if len(class_names) != NUM_CLASSES:
        raise DataError(
            f"{CLASS_NAMES} must name {NUM_CLASSES} classes: got {len(class_names)} in {archive}; delete it"
        )
    return Contents(class_names)


def _read(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> bytes:
    """A member's bytes, read in place: no path of the archive is ever written to."""
    stream = tar.extractfile(members[name]) if name in members else None
    if stream is None:
        raise DataError(
            f"the CIFAR-10 archive must hold {name}: got {', '.join(sorted(members))}; use the binary version"
        )
    return stream.read()


def _records(content: bytes, name: str) -> tuple[UInt8[np.ndarray, "b 32 32 3"], Int64[np.ndarray, " b"]]:
    if not content or len(content) % RECORD_BYTES:
        raise DataError(
            f"{name} must be made of records of {RECORD_BYTES} bytes: got {len(content)}; download it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    targets = records[:, 0].astype(np.int64)
    if targets.max() >= NUM_CLASSES:
        raise DataError(f"{name} must have labels below {NUM_CLASSES}: got {targets.max()}; download it again")
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), targets
