import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer2train.data.cifar10 import load

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
TARGETS = RNG.integers(0, 10, 12)
NAMES = [f"class{k}" for k in range(10)]


def records(images: np.ndarray, targets: np.ndarray) -> bytes:
    """The official layout, written the slow way: a label, then all red, all green, all blue bytes, row by row."""
    return b"".join(
        bytes([int(target)]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        for image, target in zip(images, targets, strict=True)
    )


def members() -> dict[str, bytes]:
    """Two images in each of the six batches, the last two for the test."""
    batches = [f"data_batch_{part}.bin" for part in range(1, 6)] + ["test_batch.bin"]
    content = {
        name: records(IMAGES[2 * part : 2 * part + 2], TARGETS[2 * part : 2 * part + 2])
        for part, name in enumerate(batches)
    }
    return {**content, "batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}


def archive(content: dict[str, bytes], prefix: str = "cifar-10-batches-bin/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Server:
    """Serves one archive on the loopback interface and counts how often it was fetched."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self._path = folder / "cifar.tar.gz"
        requests = self.requests

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                requests.append(self.path)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/cifar.tar.gz"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def serve(self, content: bytes) -> str:
        self._path.write_bytes(content)
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def close(self) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    served = tmp_path / "served"
    served.mkdir()
    server = Server(served)
    yield server
    server.close()


def test_the_archive_is_downloaded_and_read(server: Server, cache_dir: Path) -> None:
    data = load(cache_dir=cache_dir, progress=False, url=server.url, md5=server.serve(archive(members())))
    np.testing.assert_array_equal(data.train.images, IMAGES[:10])
    np.testing.assert_array_equal(data.test.images, IMAGES[10:])
    np.testing.assert_array_equal(data.train.targets, TARGETS[:10])
    np.testing.assert_array_equal(data.test.targets, TARGETS[10:])
    assert (data.name, data.class_names) == ("cifar10", tuple(NAMES))


def test_a_second_start_needs_neither_network_nor_archive(server: Server, cache_dir: Path) -> None:
    md5 = server.serve(archive(members()))
    first = load(cache_dir=cache_dir, progress=False, url=server.url, md5=md5)
    server.close()
    for path in (cache_dir / "downloads").iterdir():
        path.unlink()
    second = load(cache_dir=cache_dir, progress=False, url=server.url, md5=md5)
    np.testing.assert_array_equal(second.train.images, first.train.images)
    assert second.fingerprint == first.fingerprint
    assert len(server.requests) == 1


def test_a_downloaded_archive_is_not_fetched_again(server: Server, cache_dir: Path) -> None:
    md5 = server.serve(archive(members()))
    load(cache_dir=cache_dir, progress=False, url=server.url, md5=md5)
    (manifest,) = cache_dir.glob("images-*/manifest.json")
    manifest.unlink()
    load(cache_dir=cache_dir, progress=False, url=server.url, md5=md5)
    assert len(server.requests) == 1


def test_another_content_than_expected_is_refused_and_deleted(server: Server, cache_dir: Path) -> None:
    server.serve(archive(members()) + b"!")
    with pytest.raises(ValueError, match=r"must have MD5 0{32}.*point --data to a folder of Parquet shards"):
        load(cache_dir=cache_dir, progress=False, url=server.url, md5="0" * 32)
    assert list((cache_dir / "downloads").iterdir()) == []


def test_offline_the_error_says_what_to_do(server: Server, cache_dir: Path) -> None:
    server.close()
    with pytest.raises(ValueError, match=r"ConnectionError.*connect .*point --data to a folder of Parquet shards"):
        load(cache_dir=cache_dir, progress=False, url=server.url, md5="0" * 32)


def test_a_missing_file_on_the_server_is_an_error_of_its_own(server: Server, cache_dir: Path) -> None:
    with pytest.raises(ValueError, match="HTTPError"):
        load(cache_dir=cache_dir, progress=False, url=server.url, md5="0" * 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_3.bin": b"\0" * 3000}, "data_batch_3.bin must be made of records of 3073 bytes: got 3000"),
        ({"test_batch.bin": records(IMAGES[:1], np.array([10]))}, "test_batch.bin must have labels below 10: got 10"),
        ({"batches.meta.txt": b"cat dog"}, "must name 10 classes: got 2"),
    ],
)
def test_members_that_are_not_as_they_must_be(
    server: Server, cache_dir: Path, change: dict[str, bytes], message: str
) -> None:
    md5 = server.serve(archive({**members(), **change}))
    with pytest.raises(ValueError, match=message):
        load(cache_dir=cache_dir, progress=False, url=server.url, md5=md5)
    assert list(cache_dir.glob("images-*")) == []


def test_a_missing_member_is_named(server: Server, cache_dir: Path) -> None:
    content = members()
    del content["data_batch_4.bin"]
    with pytest.raises(ValueError, match=r"must hold data_batch_4\.bin"):
        load(cache_dir=cache_dir, progress=False, url=server.url, md5=server.serve(archive(content)))


def test_what_is_no_archive_is_named(server: Server, cache_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a whole \.tar\.gz"):
        load(cache_dir=cache_dir, progress=False, url=server.url, md5=server.serve(b"<html>moved</html>"))


def test_no_path_of_the_archive_is_written_to(server: Server, cache_dir: Path, tmp_path: Path) -> None:
    md5 = server.serve(archive(members(), prefix="../../../escaped/"))
    load(cache_dir=cache_dir, progress=False, url=server.url, md5=md5)
    assert list(tmp_path.rglob("*.bin")) == []
    assert list(tmp_path.rglob("escaped*")) == []
