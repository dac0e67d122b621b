"""Cells that are run again, interrupted and forgotten: one loader counts, and nothing is left behind."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from infer2train import MinedLoader, mine
from mined_runs import draws, jittered, network, sgd

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = Path(__file__).resolve().parents[1]
PROMPTED = [sys.executable, "-i", "-q", "-c", "import sys; sys.ps1 = sys.ps2 = ''"]


# The cell that calls mine(), run again


def cell(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> MinedLoader:
    return mine(jittered(), model, optimizer, gamma=2, update_every=2, oracle="torch:fp32", **settings)


def test_a_cell_run_again_closes_the_loader_that_is_held_by_something() -> None:
    model = network()
    optimizer = sgd(model)
    held = cell(model, optimizer)
    broken_off = iter(held)
    next(broken_off)
    loader = cell(model, optimizer)
    assert [draw.version for draw in draws(loader, model, optimizer)] == [0, 0, 2, 2, 4, 4]
    assert (loader.steps, held.steps) == (6, 0)
    for again in (broken_off, iter(held)):
        with pytest.raises(RuntimeError, match=r"got one that was closed, by close\(\) or by mine\(\) being called ag"):
            next(again)


def test_hooks_do_not_pile_up() -> None:
    model = network()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")
    held = [cell(model, optimizer) for _ in range(3)]
    assert len(optimizer._optimizer_step_post_hooks) == 1
    held += [cell(model, optimizer, scaler=scaler) for _ in range(3)]
    assert len(optimizer._optimizer_step_post_hooks) == 0
    assert cell(model, optimizer).mining == held[0].mining
    assert "step" not in vars(scaler)


def test_who_closes_in_a_hook_of_the_optimizer_may() -> None:
    model = network()
    optimizer = sgd(model)
    loader = cell(model, optimizer)
    optimizer.register_step_post_hook(lambda *_: loader.close())
    next(iter(loader))
    optimizer.step()
    assert loader.steps == 1


def test_a_forgotten_loader_is_collected_whatever_its_optimizer_does() -> None:
    model = network()
    optimizer = sgd(model)
    loader = cell(model, optimizer)
    list(draws(loader, model, optimizer))
    forgotten = weakref.ref(loader)
    del loader
    gc.collect()
    assert forgotten() is None
    optimizer.step()


# A session with oracles in a process of their own


class Session:
    """An interpreter at its prompt, whose `__main__` is in no file."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}",
        }
        self.process = subprocess.Popen(
            PROMPTED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            # Whoever runs the tests in the background has Ctrl-C ignored, and so have their children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.said: list[str] = []

    def enter(self, *lines: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n".join(lines) + "\n\n")
        self.process.stdin.flush()

    def until(self, word: str) -> str:
        """What follows the word where it is said next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError("".join(self.said))

    def worker(self) -> int:
        self.enter("print('worker', loader._pool.workers()['oracle 0'])")
        return int(self.until("worker"))

    def ask(self, question: str) -> str:
        self.enter(f"print('answer', {question})")
        return self.until("answer")


@pytest.fixture
def session() -> Iterator[Session]:
    begun = Session()
    yield begun
    with contextlib.suppress(ProcessLookupError):
        begun.process.kill()
    begun.process.wait()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_running(pid)


def shared_memory(pid: int) -> set[str]:
    """What of a process's memory others may have too, by its names."""
    mapped = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {fields[5] for fields in mapped if fields[5:] and fields[5].startswith(("/dev/shm/", "/memfd:"))}


CELL = """
settings = dict(gamma=2, update_every=2, oracle="torch:fp32", pool="process")
loader = infer2train.mine(base, model, optimizer, **settings)
""".strip().splitlines()
TRAINING = """
for epoch in range({epochs}):
    for draw in draws(loader, model, optimizer):
        if draw.number == 3: print("training", flush=True)
""".strip()


def test_a_session_is_run_again_interrupted_and_ended_without_a_close(session: Session) -> None:
    session.enter("import gc, torch, infer2train; from mined_runs import draws, jittered, network, sgd, Jittered")
    session.enter("torch.set_num_threads(1); base, model = jittered(), network(); optimizer = sgd(model)")
    session.enter(*CELL)
    session.enter(TRAINING.format(epochs=1000))
    session.until("training")
    # Ctrl-C reaches every process of a terminal.
    session.process.send_signal(signal.SIGINT)
    session.until("KeyboardInterrupt")
    first = session.worker()
    os.kill(first, signal.SIGINT)
    assert is_running(first)
    for pid in (session.process.pid, first):
        assert shared_memory(pid) == {"/memfd:infer2train (deleted)"}, "has no name, so that none can stay behind"
    assert session.ask("sys.last_traceback is not None") == "True", "which holds the loop that was broken off"

    session.enter(*CELL)
    second = session.worker()
    assert ends(first)
    session.enter(TRAINING.format(epochs=2))
    session.until("training")
    assert session.ask("loader.steps, len(optimizer._optimizer_step_post_hooks)") == "12 1"

    hosts = "('accelerate', 'ignite', 'lightning', 'pytorch_lightning', 'transformers')"
    imported = session.ask(f"[name for name in sys.modules if name.startswith({hosts})]")
    assert imported == "[]", "a loop of one's own imports no host"

    session.enter("del loader", "gc.collect()")
    assert session.ask("1") == "1"
    assert ends(second), "a loader that was let go of ends its process"

    session.enter("class Here(Jittered): pass", "")
    session.enter("base = torch.utils.data.DataLoader(Here(), batch_size=4)")
    session.enter(*CELL)
    said = session.until("ValueError:")
    assert "got Here, which was defined in this session and is in no file; put it into a module of yours" in said
    assert "use pool='inline'" in said

    session.enter("base = jittered()", *CELL)
    third = session.worker()
    session.enter("batches = iter(loader); print('first', len(next(batches)))")
    assert session.until("first") == "2"
    assert session.process.stdin is not None
    session.process.stdin.close()
    assert session.process.wait(60) == 0
    assert ends(third)
    assert session.process.stdout is not None
    assert "Exception ignored" not in session.process.stdout.read()
