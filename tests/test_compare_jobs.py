"""Runs side by side: the same results as in turn, no process left behind, and Ctrl-C saves what is under way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infer2train.observe.runlog import read_rows

SETTINGS = {"--seeds": 1, "--epochs": 200, "--threads": 1, "--gamma": 2, "--jobs": 2, "--name": "c"}


def start(runs_dir: Path) -> subprocess.Popen[str]:
    settings = [str(word) for setting in SETTINGS.items() for word in setting]
    methods = ["--methods", "baseline", "nm-augment", "nm-augment-soft"]  # the last waits for its turn
    command = [sys.executable, "-m", "infer2train", "compare", *methods, *settings, "--runs-dir", str(runs_dir)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def children_of(pid: int) -> list[int]:
    """Processes whose parent or session leader's parent is `pid`, by /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_training(runs_dir: Path) -> None:
    """Until both runs have logged a step."""
    deadline = time.monotonic() + 120
    folders = [runs_dir / "c" / f"{method}-seed0" for method in ("baseline", "nm-augment")]
    while not all(any(row["kind"] == "step" for row in read_rows(folder)) for folder in folders):
        assert time.monotonic() < deadline, "the runs did not start"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds child processes in /proc")
def test_a_killed_comparison_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until_training(tmp_path)
    children = children_of(process.pid)
    assert len(children) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 90
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline, "a run went on without its parent"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "signals", [pytest.param((signal.SIGINT,), marks=pytest.mark.slow), (signal.SIGINT, signal.SIGTERM)]
)
def test_an_interrupted_comparison_saves_both_runs_and_begins_no_other(
    signals: tuple[signal.Signals, ...], tmp_path: Path
) -> None:
    process = start(tmp_path)
    wait_until_training(tmp_path)
    for number in signals:
        os.kill(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in errors
    for method in ("baseline", "nm-augment"):
        folder = tmp_path / "c" / f"{method}-seed0"
        (interrupted,) = [row for row in read_rows(folder) if row.get("event") == "interrupted"]
        assert (folder / "checkpoints" / f"step-{interrupted['step']:08d}").is_dir()
    assert not (tmp_path / "c" / "nm-augment-soft-seed0").exists()
