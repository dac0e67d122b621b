"""A run survives what befalls it: flipped bits, killed processes, full disks; and goes on with the same numbers."""

import errno
import os
import random
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer2train.checkpoint.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from infer2train.checkpoint.manifest import write_folder
from infer2train.draws.randomness import restore_rng, rng_state

FILES = ("tensors.safetensors", "state.json", "manifest.json", "manifest.sha256")


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((3, 5), float(step)), "history": [(step, 0.5)], "seed": np.uint32(step)}


def is_whole(state: dict[str, Any]) -> bool:
    """Whether every part of a state is of the same step."""
    step = state["step"]
    return bool((state["weights"] == step).all()) and state["history"] == [(step, 0.5)] and state["seed"] == step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 100 and 150."""
    for step in (100, 150):
        save_checkpoint(tmp_path / "run", step, state_of(step))
    return tmp_path / "run"


def test_the_newest_is_loaded(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert (loaded.step, loaded.path, loaded.rejected) == (150, folder / "step-00000150", ())
    assert is_whole(loaded.state)
    assert loaded.state["weights"].device.type == "cpu"
    assert names(loaded.path) == sorted(FILES)


def test_the_users_umask_decides_who_may_read(folder: Path) -> None:
    plain = folder / "plain"
    plain.touch()
    modes = {stat.S_IMODE((folder / "step-00000150" / name).stat().st_mode) for name in FILES}
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}


def test_nothing_to_load_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "notes.txt").touch()
    (tmp_path / "step-5").mkdir()
    (tmp_path / "step-000000005").mkdir()
    (tmp_path / ".unfinished-step-00000005").mkdir()
    assert load_checkpoint(tmp_path) is None


def expect_fallback(folder: Path, name: str) -> None:
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded.step == 100, "a damaged checkpoint was believed"
    assert is_whole(loaded.state)
    assert len(loaded.rejected) == 1
    assert loaded.rejected[0].startswith("step-00000150: ")
    assert name in loaded.rejected[0]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(folder: Path, name: str) -> None:
    path = folder / "step-00000150" / name
    content = path.read_bytes()
    # Every byte, each bit of it in turn, and all bits of the first and the last.
    places = [(i, i % 8) for i in range(len(content))] + [(i, bit) for i in (0, len(content) - 1) for bit in range(8)]
    for byte, bit in places:
        flipped = bytearray(content)
        flipped[byte] ^= 1 << bit
        path.write_bytes(flipped)
        expect_fallback(folder, name)
    path.write_bytes(content)
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded.step == 150, "the undamaged one was refused as well, so the fallback above means nothing"


@pytest.mark.parametrize("name", FILES)
def test_a_short_long_or_missing_file_is_found(folder: Path, name: str) -> None:
    path = folder / "step-00000150" / name
    content = path.read_bytes()
    for changed in (content[:-1], content[: len(content) // 2], b"", content + b"\n", content * 2):
        path.write_bytes(changed)
        expect_fallback(folder, name)
    path.unlink()
    expect_fallback(folder, name)


def test_a_mixed_up_checkpoint_is_found(folder: Path) -> None:
    # Whole in itself, but not what its name says; and one file of another step.
    shutil.rmtree(folder / "step-00000150")
    shutil.copytree(folder / "step-00000100", folder / "step-00000150")
    expect_fallback(folder, "manifest.json")
    save_checkpoint(folder, 150, state_of(150))
    shutil.copy(folder / "step-00000100" / "state.json", folder / "step-00000150" / "state.json")
    expect_fallback(folder, "state.json")


def test_whole_files_that_are_not_a_state_are_passed_over(folder: Path) -> None:
    good = {name: (folder / "step-00000150" / name).read_bytes() for name in FILES[:2]}
    for step, name in enumerate(good, 200):
        foreign = folder / f"step-{step:08d}"
        foreign.mkdir()
        contents = {**good, name: b"[]"}
        write_folder(foreign, step, {file: partial(Path.write_bytes, data=data) for file, data in contents.items()})
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded.step == 150
    assert [sentence[:13] for sentence in loaded.rejected] == ["step-00000201", "step-00000200"]


def test_a_folder_without_files_or_a_file_in_its_place_is_passed_over(folder: Path) -> None:
    (folder / "step-00000200").mkdir()
    (folder / "step-00000300").touch()
    (folder / "step-00000400").symlink_to(folder / "step-00000150")
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded.step == 150
    assert [sentence[:13] for sentence in loaded.rejected] == ["step-00000400", "step-00000300", "step-00000200"]


def test_extra_files_do_no_harm(folder: Path) -> None:
    (folder / "step-00000150" / "notes.txt").write_text("best so far")
    (folder / "events.jsonl").touch()
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert (loaded.step, loaded.rejected) == (150, ())


def test_all_damaged_is_an_error_that_names_each(folder: Path) -> None:
    for step in (100, 150):
        (folder / f"step-{step:08d}" / "state.json").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"got 2 damaged \(step-00000150: state.json .*; step-00000100: state.json"
    ):
        load_checkpoint(folder)


def test_the_last_three_are_kept(tmp_path: Path) -> None:
    for step in (0, 50, 100, 150, 99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, state_of(step))
    assert names(tmp_path) == ["step-00000150", "step-100000000", "step-99999999"]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 100_000_000, "steps are ordered as numbers, not as text"


def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(folder: Path) -> None:
    (folder / "step-00000150" / "state.json").unlink()
    save_checkpoint(folder, 120, state_of(120), keep=1)
    assert names(folder) == ["step-00000120", "step-00000150"]
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded.step == 120


def test_a_step_saved_again_is_replaced(folder: Path) -> None:
    save_checkpoint(folder, 150, {**state_of(150), "again": True})
    assert names(folder) == ["step-00000100", "step-00000150"]
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert loaded.state["again"]


def test_a_replacement_that_was_cut_short_loses_nothing(folder: Path) -> None:
    # Killed between its two renames: the old one waits under its second name.
    (folder / "step-00000150").rename(folder / "step-00000150.replaced")
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert (loaded.step, loaded.rejected) == (150, ())
    save_checkpoint(folder, 200, state_of(200))
    assert names(folder) == ["step-00000100", "step-00000150", "step-00000200"]
    # Killed after them: the new one is in place.
    shutil.copytree(folder / "step-00000100", folder / "step-00000200.replaced")
    save_checkpoint(folder, 250, state_of(250))
    assert names(folder) == ["step-00000150", "step-00000200", "step-00000250"]
    loaded = load_checkpoint(folder)
    assert loaded is not None
    assert (loaded.step, loaded.rejected) == (250, ())


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    left = folder / ".unfinished-step-00000200"
    shutil.copytree(folder / "step-00000150", left)
    save_checkpoint(folder, 175, state_of(175))
    assert not left.exists()


def test_what_cannot_be_removed_is_told_of_and_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a file that somebody has open stays under another name."""

    def rmtree(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", rmtree)
        for step in (200, 250, 250, 300):
            with pytest.warns(RuntimeWarning, match="got 'Directory not empty' .* the next save tries again"):
                save_checkpoint(folder, step, state_of(step), keep=2)
            loaded = load_checkpoint(folder)
            assert loaded is not None
            assert (loaded.step, loaded.rejected) == (step, ())
    assert {"step-00000250", "step-00000300"} == {name for name in names(folder) if not name.startswith(".")}
    save_checkpoint(folder, 350, state_of(350), keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000300", "step-00000350"], "tidied up later"


def test_a_state_that_cannot_be_saved_touches_nothing(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['model'\]"):
        save_checkpoint(folder, 200, {"model": object()}, keep=1)
    with pytest.raises(ValueError, match="keep=0"):
        save_checkpoint(folder, 200, state_of(200), keep=0)
    with pytest.raises(ValueError, match="step=-1"):
        save_checkpoint(folder, -1, state_of(200))
    assert names(folder) == ["step-00000100", "step-00000150"]


def test_a_folder_that_cannot_be_made_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"Not a directory.*the last good checkpoint is none"):
        save_checkpoint(tmp_path / "file" / "run", 1, state_of(1))


# --- a process that dies, a disk that is full: the real thing, in a process of its own ------------------------------

PROLOGUE = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from infer2train.checkpoint.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

def state_of(step, size=20_000):
    return {"step": step, "weights": torch.full((size,), float(step)), "history": [(step, "x" * 20_000)]}

def check(folder, at_least):
    loaded = load_checkpoint(folder)
    assert loaded is not None, "a checkpoint was lost"
    assert loaded.rejected == (), loaded.rejected
    state = loaded.state
    assert loaded.step == state["step"] == state["history"][0][0] >= at_least, (loaded.step, at_least)
    assert bool((state["weights"] == loaded.step).all())
    return loaded

def names(folder):
    return sorted(path.name for path in folder.iterdir())
"""

KILLED_AT_RANDOM = """
folder, dice = Path(sys.argv[1]), random.Random(5)
started = time.monotonic()
save_checkpoint(folder, 0, state_of(0))
pace, last = time.monotonic() - started, 0
for attempt in range(12):
    child = os.fork()
    if child == 0:
        for step in range(last + 1, last + 10_000):
            save_checkpoint(folder, step, state_of(step))
        os._exit(1)
    time.sleep(dice.uniform(0.5, 5) * pace)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    last = check(folder, last).step
assert last > 3, last
save_checkpoint(folder, last + 1, state_of(last + 1))
assert names(folder) == [f"step-{step:08d}" for step in range(last - 1, last + 2)], names(folder)
"""

KILLED_AT_EVERY_OPERATION = """
def killed_at(operation, folder, state):
    # Whether a child that saves ended by itself before that many file operations.
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
        return status == 0
    left = operation
    def count(event, arguments):
        nonlocal left
        if event in {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.chmod"}:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    save_checkpoint(folder, state["step"], state)
    os._exit(0)

def kill_everywhere(folder, again):
    for step in (1, 2, 3):
        save_checkpoint(folder, step, state_of(step, 4))
    step, operation, finished, kinds = 3, 0, False, set()
    while not finished:
        operation += 1
        step += not again
        finished = killed_at(operation, folder, {**state_of(step, 4), "operation": operation})
        loaded = check(folder, step if finished or again else step - 1)
        assert not finished or loaded.state["operation"] == operation
        kinds |= {name.rstrip("0123456789") for name in names(folder)}
        step = loaded.step
    assert operation > 20, operation
    assert len(names(folder)) == 3, names(folder)
    return kinds

folder = Path(sys.argv[1])
kinds = kill_everywhere(folder / "new", again=False)
assert kinds == {"step-", ".unfinished-step-"}, kinds
kinds = kill_everywhere(folder / "again", again=True)
assert kinds == {"step-", ".unfinished-step-", "step-00000003.replaced", ".unfinished-step-00000003.replaced"}, kinds
"""

FULL_DISK = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size, text, culprit in ((100_000, 0, "tensors.safetensors"), (4, 100_000, "state.json")):
    folder = Path(sys.argv[1]) / str(size)
    for step in (100, 150):
        save_checkpoint(folder, step, state_of(step, 4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    for step in (150, 200):
        try:
            save_checkpoint(folder, step, {**state_of(step, size), "text": "y" * text}, keep=1)
        except CheckpointError as error:
            message = str(error)
            parts = ("File too large", f"for {culprit} of step {step}", "the last good checkpoint is step-00000150")
            assert all(part in message for part in parts), message
            assert isinstance(error.__cause__, OSError)
        else:
            raise AssertionError("nothing was full")
        assert names(folder) == ["step-00000100", "step-00000150"], names(folder)
        check(folder, 150)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save_checkpoint(folder, 200, state_of(200))
    check(folder, 200)
"""


def run(program: str, folder: Path) -> None:
    command = [sys.executable, "-c", PROLOGUE + program, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_process_killed_while_saving_loses_nothing(tmp_path: Path) -> None:
    run(KILLED_AT_RANDOM, tmp_path)


def test_a_process_killed_at_any_file_operation_loses_nothing(tmp_path: Path) -> None:
    run(KILLED_AT_EVERY_OPERATION, tmp_path)


def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path) -> None:
    run(FULL_DISK, tmp_path)


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A power cut cannot be had in a test; the order of the calls that guard against it can be watched.
    fsync, early, late = os.fsync, set(), set()
    target = tmp_path / "run" / "step-00000001"

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        (late if target.exists() else early).add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", watched)
    save_checkpoint(tmp_path / "run", 1, state_of(1))
    assert {path.stat().st_ino for path in (*target.iterdir(), target, tmp_path)} <= early
    assert late == {(tmp_path / "run").stat().st_ino}


# --- random numbers -------------------------------------------------------------------------------------------------


def numbers() -> list[float]:
    # gauss and standard_normal keep every second number for the next call: that is state too.
    return [
        *(random.random(), random.gauss(0, 1), np.random.standard_normal(), float(np.random.randint(1 << 30))),
        *(torch.randn(1).item(), float(torch.randperm(1000)[0])),
    ]


@pytest.fixture
def _global_generators() -> Any:
    before = rng_state()
    yield
    restore_rng(before)


@pytest.mark.usefixtures("_global_generators")
def test_random_numbers_go_on(tmp_path: Path) -> None:
    numbers()
    save_checkpoint(tmp_path, 1, {"rng": rng_state()})
    expected = [numbers() for _ in range(400)]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    restore_rng(loaded.state["rng"])
    assert [numbers() for _ in range(400)] == expected
    assert expected[0] != expected[1]


@pytest.mark.usefixtures("_global_generators")
def test_the_older_forms_of_the_states_go_on_too(tmp_path: Path) -> None:
    # Those of users who save np.random.get_state() and a Generator's state themselves.
    generator = np.random.Generator(np.random.PCG64(3))
    save_checkpoint(tmp_path, 1, {"numpy": np.random.get_state(), "own": generator.bit_generator.state})
    expected = np.random.standard_normal(700).tolist(), generator.random(5).tolist()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    np.random.set_state(loaded.state["numpy"])
    generator.bit_generator.state = loaded.state["own"]
    assert (np.random.standard_normal(700).tolist(), generator.random(5).tolist()) == expected


@pytest.mark.usefixtures("_global_generators")
def test_generators_of_missing_devices_are_refused_before_anything_changes() -> None:
    state = rng_state()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    numbers()
    moved = rng_state()
    with pytest.raises(ValueError, match="remove 'cuda'"):
        restore_rng(state)
    assert torch.equal(rng_state()["torch"], moved["torch"])
    assert random.getstate() == moved["python"]


@pytest.mark.gpu
def test_tensors_of_a_device_come_back_on_the_cpu_and_its_random_numbers_go_on(tmp_path: Path) -> None:
    weights = torch.randn(3, device="cuda")
    save_checkpoint(tmp_path, 1, {"weights": weights, "rng": rng_state()})
    expected = torch.randn(5, device="cuda")
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded.state["weights"], weights.cpu())
    restore_rng(loaded.state["rng"])
    assert torch.equal(torch.randn(5, device="cuda"), expected)
