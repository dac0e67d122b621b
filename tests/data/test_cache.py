import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infer2train.data.cache import Contents, growing_array
from infer2train.data.images import ImageData
from infer2train.data.once import open_decoded

FINGERPRINT = "ab" * 32
TRAIN = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)


def write(folder: Path, split: str, *batches: tuple[np.ndarray, list[int]]) -> None:
    with growing_array(folder / f"{split}-images.npy") as images, growing_array(folder / f"{split}-targets.npy") as ids:
        for pixels, targets in batches:
            images(pixels), ids(np.array(targets, np.int64))


class Builder:
    """Builds a small entry and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> Contents:
        self.calls += 1
        write(folder, "train", (TRAIN[:2], [0, 1]), (TRAIN[2:], [1]))
        write(folder, "test", (TRAIN[:1], [0]))
        return Contents(("cat", "dög"), skipped=4)


def load(cache_dir: Path, build: Callable[[Path], Contents], fingerprint: str = FINGERPRINT) -> ImageData:
    return open_decoded("pets", cache_dir, fingerprint, build)


def entry(cache_dir: Path) -> Path:
    (only,) = cache_dir.glob("images-*")
    return only


def test_what_was_built_comes_back_and_is_built_once(cache_dir: Path) -> None:
    build = Builder()
    for _ in range(3):
        data = load(cache_dir, build)
        np.testing.assert_array_equal(data.train.images, TRAIN)
        assert data.train.targets.tolist() == [0, 1, 1]
        assert (data.name, data.class_names, data.skipped) == ("pets", ("cat", "dög"), 4)
        assert data.fingerprint == FINGERPRINT
    assert build.calls == 1


def test_another_fingerprint_is_another_entry(cache_dir: Path) -> None:
    build = Builder()
    load(cache_dir, build)
    load(cache_dir, build, "cd" * 32)
    assert build.calls == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def wrong_targets(path: Path) -> None:
    np.save(path, np.array([0, 1, 2]))


def wrong_type(path: Path) -> None:
    np.save(path, TRAIN.astype(np.int8))


def of_another(path: Path) -> None:
    path.write_text(path.read_text().replace(FINGERPRINT, "0" * 64))


def without_shapes(path: Path) -> None:
    manifest = json.loads(path.read_text())
    del manifest["shapes"]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-images.npy", cut),
        ("train-images.npy", lengthen),
        ("train-images.npy", Path.unlink),
        ("train-images.npy", wrong_type),
        ("test-targets.npy", cut),
        ("train-targets.npy", wrong_targets),
        ("manifest.json", cut),
        ("manifest.json", Path.unlink),
        ("manifest.json", of_another),
        ("manifest.json", without_shapes),
    ],
)
def test_a_damaged_entry_is_built_again(cache_dir: Path, name: str, damage: Callable[[Path], None]) -> None:
    build = Builder()
    load(cache_dir, build)
    damage(entry(cache_dir) / name)
    for _ in range(2):
        np.testing.assert_array_equal(load(cache_dir, build).train.images, TRAIN)
    assert build.calls == 2
    assert [path.name for path in cache_dir.iterdir()] == [entry(cache_dir).name]


def test_a_file_in_the_place_of_an_entry_is_moved_away(cache_dir: Path) -> None:
    load(cache_dir, Builder())
    place = entry(cache_dir)
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    place.write_text("in the way")
    np.testing.assert_array_equal(load(cache_dir, Builder()).train.images, TRAIN)


def test_a_failing_builder_leaves_nothing(cache_dir: Path) -> None:
    def fail(folder: Path) -> Contents:
        with growing_array(folder / "train-images.npy") as append:
            append(TRAIN)
            raise ValueError("a bad image")

    with pytest.raises(ValueError, match="a bad image"):
        load(cache_dir, fail)
    assert list(cache_dir.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from infer2train.data.cache import growing_array
from infer2train.data.once import open_decoded

def build(folder):
    with growing_array(folder / "train-images.npy") as append:
        append(np.zeros((3, 2, 2, 3), np.uint8))
        print("building", flush=True)
        time.sleep(60)

open_decoded("pets", Path(sys.argv[1]), sys.argv[2], build)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
def test_a_full_disk_is_said_with_the_folder_and_what_to_do(cache_dir: Path) -> None:
    def build(folder: Path) -> Contents:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=f"got 'No space left on device' for {cache_dir}; free space there, or pass --data-c"
    ):
        load(cache_dir, build)
    assert list(cache_dir.iterdir()) == []


def test_a_kill_while_building_leaves_no_entry(cache_dir: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(cache_dir), FINGERPRINT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGKILL)
    assert list(cache_dir.glob("images-*")) == []
    assert len(list(cache_dir.glob(".unfinished-*"))) == 1
    build = Builder()
    np.testing.assert_array_equal(load(cache_dir, build).train.images, TRAIN)
    assert build.calls == 1


def test_only_abandoned_leftovers_are_removed(cache_dir: Path) -> None:
    for name, hours in (("old", 25), ("young", 1)):
        leftover = cache_dir / f".unfinished-{name}"
        leftover.mkdir(parents=True)
        (leftover / "train-images.npy").write_bytes(b"half")
        then = time.time() - hours * 3600
        os.utime(leftover / "train-images.npy", (then, then))
        os.utime(leftover, (then, then))
    load(cache_dir, Builder())
    assert [path.name for path in cache_dir.glob(".unfinished-*")] == [".unfinished-young"]


def test_who_comes_second_uses_what_the_first_put_there(cache_dir: Path) -> None:
    first = Builder()

    def slower(folder: Path) -> Contents:
        load(cache_dir, first)
        contents = Builder()(folder)
        return Contents(contents.class_names, skipped=99)

    assert load(cache_dir, slower).skipped == 4
    assert first.calls == 1
    assert list(cache_dir.glob(".unfinished-*")) == []


def test_open_arrays_outlive_the_replacement_of_their_entry(cache_dir: Path) -> None:
    data = load(cache_dir, Builder())
    (entry(cache_dir) / "manifest.json").unlink()
    load(cache_dir, Builder())
    np.testing.assert_array_equal(data.train.images, TRAIN)
