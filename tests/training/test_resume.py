"""Whatever stops a run, going on ends in the same weights, bit for bit, and in the same record."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.observe.metrics import LANES
from infer2train.observe.runlog import read_rows
from run_processes import Moment, command_line, fill_disk, interrupt, interrupt_twice, terminate

EPOCHS, STEPS_PER_EPOCH, UPDATE_EVERY, CHECKPOINT_EVERY = 4, 5, 7, 3
LAST = EPOCHS * STEPS_PER_EPOCH
TINY = (
    f"train --epochs {EPOCHS} --batch-size 40 --threads 1 --update-every {UPDATE_EVERY} --log-every 1 "
    f"--checkpoint-every {CHECKPOINT_EVERY} --train-error-samples 20"
).split()
METHODS = {
    "nm-sample": ["--method", "nm-sample", "--ramp-rate", "0.3"],
    "nm-augment": ["--method", "nm-augment", "--gamma", "4"],
    "self-distill": ["--method", "self-distill", "--gamma", "4", "--distill-weight", "0.1", "--model", "own:dropping"],
}
OWN_MODEL = """
from torch import nn

def dropping(num_classes, in_channels):
    convolution = nn.Conv2d(in_channels, 8, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(512, num_classes))
"""  # noqa: E501
LOOP, WATCH, CHECKPOINT = "infer2train.training.loop", "infer2train.training.watch", "infer2train.checkpoint.checkpoint"
TIMED = ("seconds", "steps_per_second", "scoring_share", *(f"{name}_seconds" for name in LANES))


@dataclass
class Work:
    """A folder to start runs in, and what the undisturbed run of each method left there."""

    folder: Path

    def start(self, name: str, method: str, *more: str, moment: Moment | None = None) -> tuple[int, str]:
        return command_line(self.folder, *TINY, *METHODS[method], "--name", name, *more, moment=moment)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def undisturbed(self, method: str) -> Path:
        if not self.run(method).exists():
            status, output = self.start(method, method)
            assert status == 0, output
        return self.run(method)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    (folder / "own.py").write_text(OWN_MODEL)
    return Work(folder)


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights, momentum, published records and random states of the last checkpoint, straight from its file."""
    return load_file(max((run / "checkpoints").glob("step-*")) / "tensors.safetensors")


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of a kind, without what a clock decides."""
    found = [row for row in read_rows(run) if row["kind"] == kind]
    return [{name: value for name, value in row.items() if name not in TIMED} for row in found]


def events(run: Path) -> list[str]:
    return [row["event"] for row in rows(run, "event")]


def checkpoints(run: Path) -> list[str]:
    folder = run / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_same(run: Path, other: Path) -> None:
    tensors, expected = last_tensors(run), last_tensors(other)
    assert any("'model'" in name for name in expected)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    assert [row["step"] for row in rows(run, "step")] == list(range(1, LAST + 1))
    assert [row["epoch"] for row in rows(run, "epoch")] == list(range(EPOCHS))
    for kind in ("step", "epoch"):
        assert rows(run, kind) == rows(other, kind)
    assert events(run)[-1] == "finished"
    assert events(run).count("finished") == 1
    assert (run / "report.html").exists()


def test_undisturbed_runs_are_repeatable_and_differ_by_seed(work: Work) -> None:
    status, output = work.start("again", "nm-sample")
    assert status == 0, output
    assert_same(work.run("again"), work.undisturbed("nm-sample"))
    work.start("seed-1", "nm-sample", "--seed", "1")
    assert rows(work.run("seed-1"), "epoch") != rows(work.run("again"), "epoch")


# Each line: where the run is killed, the checkpoint that it then has last, and whether an unfinished one lies there.
# Checkpoints come after steps 3, 5, 6, 9, 10, 12, 15 (twice: it is due, and an epoch ends), 18 and 20.
KILLS: dict[str, list[tuple[Moment, int | None, bool]]] = {
    "nm-sample": [
        (Moment("before", "pathlib:Path.replace"), None, False),  # the configuration is written, not yet renamed
        (Moment("after", f"{LOOP}:train_step", 2), None, False),
        (Moment("before", "infer2train.checkpoint.manifest:sync", 2), None, True),  # inside the very first checkpoint
        (Moment("after", f"{LOOP}:train_step", 8), 6, False),  # within an epoch, within T, on the ramp
        (Moment("before", f"{CHECKPOINT}:_put_in_place"), 6, True),  # checkpoint 9 is whole, under its other name
        (Moment("before", f"{CHECKPOINT}:sync"), 9, False),  # and here under its own
        (Moment("before", f"{WATCH}:evaluate"), 9, False),  # epoch 1 is trained, not evaluated
        (Moment("before", f"{LOOP}:_checkpoint"), 9, False),  # epoch 1 is logged, not saved
        (Moment("before", "shutil:rmtree"), 10, True),  # an old checkpoint is being removed
        (Moment("after", "infer2train.oracle.scorer:Scorer.score", 4), 12, False),
        (Moment("before", f"{WATCH}:evaluate"), 15, False),  # all draws of epoch 2 are in the checkpoint
        (Moment("before", f"{CHECKPOINT}:sync"), 15, False),  # checkpoint 15 is replaced by a second one
        (Moment("before", f"{LOOP}:write_report"), 20, False),
    ],
    "nm-augment": [
        (Moment("after", "infer2train.observe.runlog:RunLog.write", 6), 3, False),  # one start row, five steps
        (Moment("before", "infer2train.oracle.torch_engine:TorchEngine.use", 2), 6, False),
        (Moment("after", "infer2train.checkpoint.manifest:sync", 3), 6, True),
        (Moment("after", f"{LOOP}:train_step", 8), 12, False),
    ],
    "self-distill": [
        (Moment("after", f"{LOOP}:train_step", 4), 3, False),
        (Moment("after", f"{LOOP}:train_step", 5), 6, False),
        (Moment("before", f"{CHECKPOINT}:_write_tensors", 2), 9, True),
        (Moment("after", f"{LOOP}:train_step", 8), 15, False),
    ],
}


@pytest.mark.parametrize(
    "method", ["nm-augment", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "nm-augment")]
)
def test_killed_again_and_again(method: str, work: Work) -> None:
    name, run = f"killed-{method}", work.run(f"killed-{method}")
    steps_killed_at = set()
    for moment, last, is_unfinished in KILLS[method]:
        status, output = work.start(name, method, "--resume", moment=moment)
        assert status == -signal.SIGKILL, (moment, output)
        good = load_checkpoint(run / "checkpoints")
        assert (good and good.step) == last, (moment, checkpoints(run))
        assert any(folder.startswith(".") for folder in checkpoints(run)) == is_unfinished, (moment, checkpoints(run))
        steps_killed_at |= {max((row["step"] for row in rows(run, "step")), default=0) + 1}
    assert any(step % STEPS_PER_EPOCH and step % UPDATE_EVERY and step > STEPS_PER_EPOCH for step in steps_killed_at)
    status, output = work.start(name, method, "--resume")
    assert status == 0, output
    assert f"resumed at step {last}" in output
    assert_same(run, work.undisturbed(method))


@pytest.mark.parametrize(
    ("method", "stop"),
    [
        pytest.param("nm-sample", interrupt, marks=pytest.mark.slow),
        ("nm-sample", terminate),
        ("nm-augment", interrupt),
        pytest.param("self-distill", interrupt, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_finishes_the_step_and_saves(method: str, stop: Callable[[], None], work: Work) -> None:
    name = f"{stop.__name__}-{method}"
    run = work.run(name)
    status, output = work.start(name, method, moment=Moment("before", f"{LOOP}:train_step", 8, stop))
    assert status == 130
    assert output.splitlines()[-1] == (
        "interrupted after step 8; everything is saved; the same command with --resume goes on"
    )
    assert "Traceback" not in output
    good = load_checkpoint(run / "checkpoints")
    assert good is not None
    assert good.step == 8
    assert rows(run, "step")[-1]["step"] == 8
    assert events(run) == ["interrupted"]
    status, output = work.start(name, method, "--resume")
    assert status == 0, output
    assert "resumed at step 8" in output
    assert events(run) == ["interrupted", "resumed", "finished"]
    assert_same(run, work.undisturbed(method))


def test_a_second_ctrl_c_stops_at_once(work: Work) -> None:
    run = work.run("impatient")
    moment = Moment("before", f"{LOOP}:save_checkpoint", 1, interrupt_twice)
    status, output = work.start("impatient", "nm-sample", moment=moment)
    assert status == 130
    assert "Traceback" not in output
    assert checkpoints(run) == []
    status, output = work.start("impatient", "nm-sample", "--resume")
    assert status == 0, output
    assert_same(run, work.undisturbed("nm-sample"))


def test_full_disk(work: Work) -> None:
    run = work.run("full")
    moment = Moment("before", f"{LOOP}:save_checkpoint", 3, fill_disk)
    status, output = work.start("full", "nm-augment", moment=moment)
    assert status == 1
    *_, message = output.splitlines()
    assert message.startswith("infer2train: a checkpoint must be written whole: got ")
    assert "File too large" in message
    assert "the last good checkpoint is step-00000005" in message
    assert "Traceback" not in output
    assert checkpoints(run) == ["step-00000003", "step-00000005"]
    assert events(run) == ["checkpoint-failed"]
    status, output = work.start("full", "nm-augment", "--resume")
    assert status == 0, output
    assert_same(run, work.undisturbed("nm-augment"))


OTHER_FILES = ("state.json", "manifest.json", "manifest.sha256")


@pytest.mark.parametrize(
    "file",
    ["tensors.safetensors", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_FILES)],
)
def test_a_flipped_bit_costs_one_checkpoint(file: str, work: Work) -> None:
    name = f"flipped-{file}"
    run = work.run(name)
    work.start(name, "self-distill", moment=Moment("after", f"{LOOP}:train_step", 11))
    newest = run / "checkpoints" / "step-00000010" / file
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    status, output = work.start(name, "self-distill", "--resume", "--quiet")
    assert status == 0, output
    (said,) = [line for line in output.splitlines() if "step-00000010" in line]
    assert said.startswith("damaged checkpoint passed over: step-00000010: ")
    assert events(run) == ["checkpoint-rejected", "resumed", "finished"]
    (rejected, resumed, _) = rows(run, "event")
    assert rejected["message"] in said
    assert resumed["step"] == 9
    assert_same(run, work.undisturbed("self-distill"))


def test_a_finished_run_is_not_trained_again(work: Work) -> None:
    run = work.run("finished")
    shutil.copytree(work.undisturbed("nm-augment"), run)
    before = (last_tensors(run), rows(run, "step"), rows(run, "epoch"))
    status, output = work.start("finished", "nm-augment", "--resume", moment=Moment("before", f"{LOOP}:train_step"))
    assert status == 0, output
    assert (rows(run, "step"), rows(run, "epoch")) == before[1:]
    assert events(run) == ["resumed", "finished"]
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in last_tensors(run).items())


def test_what_the_machine_decided_is_kept(work: Work) -> None:
    """Threads left to the machine are decided once: a resumed run takes those of its configuration."""
    run, threads = work.run("automatic"), TINY.index("--threads")
    command = TINY[:threads] + TINY[threads + 2 :]
    moment = Moment("after", f"{LOOP}:train_step", 4)
    command_line(work.folder, *command, "--threads", "3", "--name", "automatic", moment=moment)
    status, output = command_line(work.folder, *command, "--name", "automatic", "--resume")
    assert status == 0, output
    assert [row["machine"]["threads"] for row in rows(run, "start")] == [3, 3]


def test_a_resumed_run_needs_the_same_settings(work: Work) -> None:
    run = work.undisturbed("nm-augment")
    before = (run / "config.yaml").read_bytes(), (run / "metrics.jsonl").read_bytes()
    status, output = work.start("nm-augment", "nm-augment", "--resume", "--lr", "0.2", "--seed", "5")
    assert status == 2
    assert "lr: 0.05 -> 0.2; seed: 0 -> 5" in output
    assert "gamma" not in output
    assert ((run / "config.yaml").read_bytes(), (run / "metrics.jsonl").read_bytes()) == before


def test_an_existing_run_is_not_overwritten(work: Work) -> None:
    run = work.undisturbed("nm-augment")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, output = work.start("nm-augment", "nm-augment")
    assert status == 2
    assert "--resume" in output
    assert "--name" in output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


class Installed:
    """The command as a shell starts it, watched from outside through the files that it writes."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.output = folder / "watched.txt"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infer2train", *arguments],
                cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait_for_step(self, run: Path, step: int) -> None:
        deadline = time.monotonic() + 120
        while not any(row["kind"] == "step" and row["step"] >= step for row in read_rows(run)):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, "the run does not come to its steps"
            time.sleep(0.001)


def test_the_installed_command(work: Work) -> None:
    run = work.run("installed")
    arguments = [*TINY, *METHODS["nm-sample"], "--name", "installed"]
    command = Installed(work.folder, *arguments)
    command.wait_for_step(run, 7)
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(60) == 130
    step = rows(run, "step")[-1]["step"]
    assert f"interrupted after step {step}; everything is saved" in command.output.read_text()
    good = load_checkpoint(run / "checkpoints")
    assert good is not None
    assert good.step == step
    command = Installed(work.folder, *arguments, "--resume")
    command.wait_for_step(run, min(step + 2, LAST))
    command.process.kill()
    command.process.wait(60)
    status, output = work.start("installed", "nm-sample", "--resume")
    assert status == 0, output
    assert_same(run, work.undisturbed("nm-sample"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", METHODS)
def test_twenty_random_kills(method: str, work: Work) -> None:
    """Kills at moments that nobody chose; the seed is printed where the test fails."""
    seed = int(os.environ.get("INFER2TRAIN_KILL_SEED", time.time_ns() % 1_000_000))
    rng = random.Random(seed)
    functions = [
        *(f"{LOOP}:{name}" for name in ("train_step", "save_checkpoint", "take_back")),
        *(f"{WATCH}:{name}" for name in ("evaluate", "audit_draw")),
        *(
            "infer2train.checkpoint.manifest:sync",
            f"{CHECKPOINT}:sync",
            "os:open",
            "os:replace",
            "os:rename",
            "shutil:rmtree",
        ),
        *("infer2train.observe.runlog:RunLog.write", "infer2train.oracle.scorer:Scorer.score", "json:dumps"),
    ]
    name, kills, steps = f"random-{method}", 0, []
    while kills < 20:
        moment = Moment(rng.choice(["before", "after"]), rng.choice(functions), rng.randint(1, 6))
        status, output = work.start(name, method, "--resume", moment=moment)
        assert status in (0, -signal.SIGKILL), (seed, output)
        if status == 0:  # it came to its end: the next kills hit another run
            assert_same(work.run(name), work.undisturbed(method))
            name = f"random-{method}-{kills}"
        else:
            kills += 1
            steps.append(max((row["step"] for row in rows(work.run(name), "step")), default=0))
    status, output = work.start(name, method, "--resume")
    assert status == 0, (seed, output)
    assert_same(work.run(name), work.undisturbed(method))
    print(json.dumps({"seed": seed, "killed at steps": steps}))  # noqa: T201
