"""Whole runs with oracles in processes: whatever is killed, going on ends in the weights of an undisturbed run.

The undisturbed run has its oracle in its own process: where an oracle runs does not show in the weights.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infer2train.observe.runlog import read_rows
from run_processes import Moment, command_line, kill

EPOCHS, STEPS_PER_EPOCH = 2, 5
TINY = (
    f"train --method nm-augment --gamma 4 --epochs {EPOCHS} --batch-size 40 --limit 200 --threads 1 --update-every 3 "
    "--log-every 1 --checkpoint-every 2 --train-error-samples 20 --model own:Flat"
).split()
FRESHEST = ["--staleness", "freshest", "--on-oracle-loss", "continue"]
OWN_MODEL = """
from torch import nn

class Flat(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        super().__init__(nn.Flatten(), nn.Linear(64 * in_channels, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""
LOOP = "infer2train.training.loop"
GONE_SECONDS = 90
"""Until a worker that is still importing its packages notices that nobody is there."""


def family(folder: Path) -> dict[int, str]:
    """What runs in a folder: process id -> command line. Runs start there, and so do their workers."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == folder:
                command = (process / "cmdline").read_bytes()
                if command:  # not one that has ended and was not waited for yet
                    found[int(process.name)] = command.replace(b"\0", b" ").decode()
        except OSError:  # it ended while we looked
            continue
    return found


def lose_the_oracle() -> None:
    """Kill the workers of this process; the module of the model vanishes, so that no other can start."""
    Path("own.py").unlink()
    for pid, command in family(Path.cwd()).items():
        if "spawn_main" in command:
            os.kill(pid, signal.SIGKILL)


def look_and_kill() -> None:
    """Write down which processes there are and what named memory they have; then end as if killed."""
    end = time.monotonic() + 60
    while len(pids := family(Path.cwd())) < 2 and time.monotonic() < end:
        pass  # one that is just being started has no command line for a moment
    maps = [(Path("/proc") / str(pid) / "maps").read_text() for pid in pids]
    named = [line for text in maps for line in text.splitlines() if "/dev/shm/" in line and "(deleted)" not in line]
    Path("looked").write_text("\n".join([f"{len(pids)} processes", *named]))
    kill()


class Work:
    """A folder to start runs in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.restore()

    def restore(self) -> None:
        (self.folder / "own.py").write_text(OWN_MODEL)

    def start(self, name: str, *more: str, moment: Moment | None = None, pool: str = "process") -> tuple[int, str]:
        return command_line(self.folder, *TINY, "--pool", pool, "--name", name, *more, moment=moment)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        folder = self.folder / "runs" / name / "checkpoints"
        return load_file(max(folder.glob("step-*")) / "tensors.safetensors")

    def events(self, name: str) -> list[str]:
        return [row["event"] for row in read_rows(self.folder / "runs" / name) if row["kind"] == "event"]

    def undisturbed(self) -> dict[str, torch.Tensor]:
        if not (self.folder / "runs" / "undisturbed").exists():
            status, output = self.start("undisturbed", pool="inline")
            assert status == 0, output
        return self.tensors("undisturbed")

    def assert_undisturbed(self, name: str) -> None:
        tensors, expected = self.tensors(name), self.undisturbed()
        assert any("'model'" in tensor for tensor in expected)
        assert tensors.keys() == expected.keys()
        assert [tensor for tensor in expected if not torch.equal(tensors[tensor], expected[tensor])] == []
        assert self.events(name)[-1] == "finished"

    def assert_nobody_is_left(self) -> None:
        end = time.monotonic() + GONE_SECONDS
        while left := family(self.folder):
            assert time.monotonic() < end, left
            time.sleep(0.05)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    work = Work(tmp_path_factory.mktemp("work").resolve())
    yield work
    for pid in family(work.folder):
        os.kill(pid, signal.SIGKILL)


MOMENTS = {
    "while a worker starts": Moment("after", "infer2train.pool.process:ProcessPool._start", 1, look_and_kill),
    "at its first step": Moment("before", f"{LOOP}:train_step", 1, look_and_kill),
    "while workers score ahead": Moment("after", f"{LOOP}:train_step", 5, look_and_kill),
    "while it waits for scores": Moment("before", "infer2train.pool.process:ProcessPool.collect", 4, look_and_kill),
    "while it publishes": Moment("after", "infer2train.pool.process:ProcessPool.room", 2, look_and_kill),
}
DEFAULT = "while workers score ahead"


@pytest.mark.parametrize(
    "moment", [pytest.param(m, id=n, marks=[] if n == DEFAULT else pytest.mark.slow) for n, m in MOMENTS.items()]
)
def test_a_killed_trainer_leaves_no_process_and_goes_on_to_the_same_weights(
    moment: Moment, work: Work, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    status, output = work.start(name, moment=moment)
    assert status == -signal.SIGKILL, output
    processes, *named_memory = (work.folder / "looked").read_text().splitlines()
    assert int(processes.split()[0]) >= 2, "the trainer and its worker"
    assert named_memory == []
    work.assert_nobody_is_left()
    status, output = work.start(name, "--resume")
    assert status == 0, output
    work.assert_undisturbed(name)
    work.assert_nobody_is_left()


@pytest.mark.slow
def test_a_run_whose_oracle_is_lost_saves_everything_and_goes_on_inline(work: Work) -> None:
    moment = Moment("before", f"{LOOP}:train_step", 5, lose_the_oracle)
    status, output = work.start("lost", moment=moment)
    work.restore()
    assert status == 1, output
    assert "OracleLostError: an oracle must be there to score: got none, after 3 restarts" in output
    assert "No module named 'own'" in output
    assert work.events("lost")[-1] == "oracle-lost"
    steps = [row["step"] for row in read_rows(work.folder / "runs" / "lost") if row["kind"] == "step"]
    work.assert_nobody_is_left()
    status, output = work.start("lost", "--resume", pool="inline")
    assert status == 0, output
    assert f"resumed at step {max(steps)}" in output
    work.assert_undisturbed("lost")


@pytest.mark.slow
def test_a_run_that_may_goes_on_unmined_without_its_oracle(work: Work) -> None:
    moment = Moment("before", f"{LOOP}:train_step", 5, lose_the_oracle)
    status, output = work.start("unmined", *FRESHEST, moment=moment)
    work.restore()
    assert status == 0, output
    assert "The run goes on without mining." in output
    rows = [row for row in read_rows(work.folder / "runs" / "unmined") if row["kind"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert sum(row.get("oracle_lost_draws", 0) for row in rows) > 0
    work.assert_nobody_is_left()


@pytest.mark.slow
def test_random_kills_of_workers_and_trainer_in_one_run(work: Work) -> None:
    """Kills at moments that nobody chose."""
    chance = random.Random(1)
    functions = [
        f"{LOOP}:train_step",
        "infer2train.pool.process:ProcessPool._look",
        "infer2train.loader.picking:Picker.take",
    ]
    status = -signal.SIGKILL
    for what in (kill_a_worker, None, kill_a_worker, None):
        moment = Moment("after", chance.choice(functions), chance.randint(1, 6), *([what] if what else []))
        status, output = work.start("random", "--resume", moment=moment)
        assert status in (0, -signal.SIGKILL), output
        work.assert_nobody_is_left()
    if status:
        status, output = work.start("random", "--resume")
    assert status == 0, output
    work.assert_undisturbed("random")


def kill_a_worker() -> None:
    """Kill one of this process's workers."""
    workers: Callable[[], list[int]] = lambda: [  # noqa: E731
        pid for pid, command in family(Path.cwd()).items() if "spawn_main" in command
    ]
    if pids := workers():
        os.kill(pids[0], signal.SIGKILL)
