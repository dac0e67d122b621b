"""The run folder's record: rows are on the disk when written, and a run that goes on takes back what it repeats."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infer2train.observe.runlog import (
    CONFIG,
    METRICS,
    RunLog,
    read_config,
    read_rows,
    rows_and_rest,
    take_back,
    write_config,
)


def write(folder: Path, *rows: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def step(number: int, epoch: int) -> dict[str, object]:
    return {"kind": "step", "step": number, "epoch": epoch, "loss": number / 7}


def epoch(number: int, steps: int) -> dict[str, object]:
    return {"kind": "epoch", "epoch": number, "step": steps, "test_error": 0.1}


def event(name: str, at: int) -> dict[str, object]:
    return {"kind": "event", "event": name, "step": at, "message": name}


START: dict[str, object] = {"kind": "start", "time": 1.0}


def test_a_row_survives_a_kill_that_follows_it(tmp_path: Path) -> None:
    killed = """
import os, signal, sys
from pathlib import Path
from infer2train.observe.runlog import RunLog

log = RunLog(Path(sys.argv[1]), tensorboard=False)
log.write("step", step=1, loss=0.25)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", killed, tmp_path], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_rows(tmp_path) == [{"kind": "step", "step": 1, "loss": 0.25}]


def test_rows_are_appended_and_nothing_finite_is_needed(tmp_path: Path) -> None:
    for loss in (0.1, float("nan")):
        log = RunLog(tmp_path, tensorboard=False)
        log.write("step", step=1, loss=loss)
        log.close()
        log.close()
    first, second = read_rows(tmp_path)
    assert first["loss"] == 0.1
    assert second["loss"] != second["loss"]


def test_a_torn_last_line_is_no_row(tmp_path: Path) -> None:
    write(tmp_path, step(1, 0), step(2, 0))
    content = (tmp_path / METRICS).read_bytes()
    for cut in range(1, len(content) // 2):
        (tmp_path / METRICS).write_bytes(content[:-cut])
        assert read_rows(tmp_path) == [step(1, 0)] + [step(2, 0)] * (cut == 1)
    assert read_rows(tmp_path / "nothing") == []


def test_what_others_wrote_is_no_row(tmp_path: Path) -> None:
    write(tmp_path, step(1, 0), {"foreign": 1}, {"kind": 7}, step(2, 0))
    assert rows_and_rest(tmp_path) == ([step(1, 0), step(2, 0)], 2)
    take_back(tmp_path, step=1, epoch=0)
    assert read_rows(tmp_path) == [step(1, 0)]


def test_take_back_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    kept = [START, step(4, 0), step(5, 0), epoch(0, 5), event("interrupted", 7), step(6, 1)]
    dropped = [step(7, 1), step(10, 1), epoch(1, 10), step(11, 2)]
    write(tmp_path, *kept, *dropped, event("checkpoint-failed", 11))
    take_back(tmp_path, step=6, epoch=1)
    assert read_rows(tmp_path) == [*kept, event("checkpoint-failed", 11)]


def test_take_back_at_the_end_of_an_epoch_decides_by_the_epoch(tmp_path: Path) -> None:
    """After step 10 the row of epoch 1 is written already, or not yet: the checkpoint knows."""
    rows = [START, step(5, 0), epoch(0, 5), step(10, 1), epoch(1, 10)]
    write(tmp_path, *rows)
    take_back(tmp_path, step=10, epoch=2)
    assert read_rows(tmp_path) == rows
    take_back(tmp_path, step=10, epoch=1)
    assert read_rows(tmp_path) == rows[:-1]


def test_take_back_without_a_checkpoint_leaves_the_starts_and_what_happened(tmp_path: Path) -> None:
    write(tmp_path, START, event("images-skipped", 0), step(1, 0), event("diverged", 1), event("finished", 1))
    take_back(tmp_path, step=0, epoch=0)
    assert read_rows(tmp_path) == [START, event("diverged", 1)]
    take_back(tmp_path, step=0, epoch=0)
    assert read_rows(tmp_path) == [START, event("diverged", 1)]


def test_take_back_removes_a_torn_line_for_good(tmp_path: Path) -> None:
    write(tmp_path, step(1, 0))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "st')
    take_back(tmp_path, step=1, epoch=0)
    log = RunLog(tmp_path, tensorboard=False)
    log.write("step", step=2)
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1, 2]


def test_a_full_disk_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, tensorboard=False)
    with Path("/dev/full").open("a") as full:
        monkeypatch.setattr(log, "_file", full)
        with pytest.raises(
            OSError, match=r"got 'No space left on device' for metrics\.jsonl in .*; free space .* --resume"
        ):
            log.write("step", step=1)
        log.close()


def test_a_disk_that_is_full_at_the_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *content: object, **named: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, START)
    monkeypatch.setattr(Path, "write_text", refuse)
    said = r"must be written down .*: got 'No space left on device' for {} in .*; free space .* --resume"
    with pytest.raises(OSError, match=said.format(CONFIG)):
        write_config(tmp_path, {})
    with pytest.raises(OSError, match=said.format(METRICS)):
        take_back(tmp_path, step=0, epoch=0)


def test_configuration(tmp_path: Path) -> None:
    settings = {"zeta": 1, "alpha": None, "lr_drops": [1, 2], "data": "größe", "distill_weight": 1e-05}
    write_config(tmp_path / "run", settings)
    assert read_config(tmp_path / "run") == settings
    assert list(read_config(tmp_path / "run")) == list(settings)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [CONFIG]


def test_configurations_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds config\.yaml: got .* without one"):
        read_config(tmp_path)
    (tmp_path / CONFIG).write_text("- just\n- a list\n")
    with pytest.raises(ValueError, match="must hold settings by name: got list"):
        read_config(tmp_path)
    for damaged in (b"lr: 0.1\n: [", b"lr: \xff", b"lr: 0.1\n\0\0\0"):
        (tmp_path / CONFIG).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"config\.yaml must be whole YAML: got .*; restore it"):
            read_config(tmp_path)


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.write("step", step=7, loss=0.5, penalty=None)
    log.write("start", time=1.0)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"step/loss", "step/step"}
    (scalar,) = events.Scalars("step/loss")
    assert (scalar.step, scalar.value) == (7, 0.5)


@pytest.mark.parametrize("is_open", [True, False], ids=["in the same process", "in another"])
def test_tensorboard_shows_no_step_twice(is_open: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.write("step", step=step, loss=float(step))
    if is_open:
        log.take_back(1, 0)
    else:
        log.close()
        take_back(tmp_path, 1, 0)
        log = RunLog(tmp_path)
    log.write("step", step=2, loss=20.0)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("step/loss")] == [(1, 1.0), (2, 20.0)]
