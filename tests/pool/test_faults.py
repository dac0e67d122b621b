"""Whatever happens to a worker, the scores are those of undisturbed work, bit for bit; or an error says what is wrong.

A worker takes seconds to start, so that one pool serves most tests.
"""

import gc
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from conformance.pool import Case, Sentences, Small, case
from infer2train.draws.addresses import Addresses
from infer2train.draws.scores import loss
from infer2train.pool.messages import OracleError
from infer2train.pool.packing import packed
from infer2train.pool.pool import OracleLostError
from infer2train.pool.process import ProcessPool
from infer2train.pool.pulse import PHASES
from infer2train.pool.seat import Patience
from infer2train.pool.worker_process import GUARD
from infer2train.sources.replay import Replay
from infer2train.sources.source import Source
from pool.process_pools import Meddled, Orders, Shared, bits, process_pool, score_all, scoring_task

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:oracle 0 (was killed|gave no sign|ended|computes otherwise)"),
]
STARVED_SECONDS = 120.0
"""A worker that runs has given a sign of life by then, however busy the machine is."""
SILENT_SECONDS, UNNOTICED_SECONDS = 2.0, 1.0


def until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.005)


class Disturbed:
    """A pool, what undisturbed work says, and orders for its worker."""

    def __init__(self, folder: Path, images: Case) -> None:
        self.case, self.orders = images, Orders(folder)
        self.others = sockets(os.getpid())
        """That were there before."""
        task = replace(images.task, source=Meddled(images.task.source, self.orders))
        self.pool = Shared(scoring_task(task), patience=Patience(silent_seconds=STARVED_SECONDS))
        self.undisturbed = score_all(self.pool, images)
        self.pool.close()

    def restarts(self) -> float:
        return self.pool.totals().get("worker_restarts", 0.0)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    disturbed = Disturbed(tmp_path_factory.mktemp("orders"), case("images"))
    torch.set_num_threads(threads)
    yield disturbed
    disturbed.pool.end()


@pytest.fixture
def disturbed(started: Disturbed) -> Iterator[Disturbed]:
    yield started
    started.orders.forget()
    started.pool.close()


DEFAULT_PHASES = ("scoring", "answering")


@pytest.mark.parametrize(
    "phase", [p if p in DEFAULT_PHASES else pytest.param(p, marks=pytest.mark.slow) for p in PHASES if p != "starting"]
)
def test_a_worker_killed_at_any_phase_is_replaced_and_nothing_else_changes(phase: str, disturbed: Disturbed) -> None:
    before = disturbed.restarts()
    disturbed.orders.give(phase, "kill")
    assert score_all(disturbed.pool, disturbed.case) == disturbed.undisturbed
    assert disturbed.orders.are_obeyed()
    assert disturbed.restarts() == before + 1


@pytest.mark.slow
def test_a_worker_killed_again_while_it_starts_is_replaced_again(disturbed: Disturbed) -> None:
    before = disturbed.restarts()
    disturbed.orders.give("starting", "kill", times=2)
    os.kill(disturbed.pool.workers()["oracle 0"], signal.SIGKILL)
    assert score_all(disturbed.pool, disturbed.case) == disturbed.undisturbed
    assert disturbed.restarts() == before + 3


@pytest.mark.slow
def test_workers_killed_at_random_moments_answer_as_if_nothing_had_been(disturbed: Disturbed) -> None:
    before, chance, pool = disturbed.restarts(), random.Random(3), disturbed.pool
    for _ in range(8):
        pool.publish(disturbed.case.record(0))
        for draw in range(6):
            pool.submit(draw, disturbed.case.addresses(draw), 0)
        until(lambda: pool.is_ready(0), "a first answer")
        time.sleep(chance.random() * 0.05)
        os.kill(pool.workers()["oracle 0"], signal.SIGKILL)
        assert [bits(pool.collect(draw)) for draw in range(6)][::2] == disturbed.undisturbed[:6:2]
        pool.submit(7, disturbed.case.addresses(7), 0)
        pool.collect(7)  # the kill is noticed at the latest where something is asked
        pool.close()
    assert disturbed.restarts() == before + 8


def test_a_stopped_worker_that_goes_on_in_time_is_kept_and_else_is_replaced(
    disturbed: Disturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, pool, images = disturbed.restarts(), disturbed.pool, disturbed.case
    pid = pool.workers()["oracle 0"]
    pool.publish(images.record(0))
    os.kill(pid, signal.SIGSTOP)
    pool.submit(0, images.addresses(0), 0)
    end = time.monotonic() + UNNOTICED_SECONDS
    while time.monotonic() < end:
        assert not pool.is_ready(0)
        time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)
    assert bits(pool.collect(0)) == disturbed.undisturbed[0]
    assert pool.workers() == {"oracle 0": pid}
    assert disturbed.restarts() == before

    disturbed.orders.give("scoring", "stop")
    pool.submit(1, images.addresses(1), 0)
    until(disturbed.orders.are_obeyed, "the worker stops")
    assert disturbed.restarts() == before
    (seat,) = pool._seats
    monkeypatch.setattr(seat, "_patience", Patience(silent_seconds=SILENT_SECONDS))
    with pytest.warns(RuntimeWarning, match=f"gave no sign of life for {SILENT_SECONDS:g} s while scoring"):
        until(lambda: pool.is_ready(1) or disturbed.restarts() > before, "it is replaced")
    monkeypatch.undo()
    assert bits(pool.collect(1)) == disturbed.undisturbed[1]
    assert disturbed.restarts() == before + 1
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_a_worker_that_hangs_and_beats_is_replaced_after_its_time_for_an_answer(tmp_path: Path) -> None:
    images = case("images")
    flag = tmp_path / "hang"
    task = replace(images.task, score=Hanging(flag))
    with_patience = process_pool(task, patience=Patience(answer_seconds=2))
    with_patience.publish(images.record(0))
    with_patience.submit(0, images.addresses(0), 0)
    undisturbed = bits(with_patience.collect(0))
    flag.touch()
    with_patience.submit(0, images.addresses(0), 0)
    with pytest.warns(RuntimeWarning, match=r"took more than 2 s for draw 0 \(scoring\)"):
        assert bits(with_patience.collect(0)) == undisturbed
    with_patience.close()


class Hanging:
    """The loss; hangs once where a file says so."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        if self._flag.exists():
            self._flag.unlink()
            time.sleep(1000)
        return loss(outputs, targets)


def test_a_first_worker_that_ends_while_it_starts_is_the_oracle_lost(tmp_path: Path) -> None:
    images, orders = case("images"), Orders(tmp_path)
    orders.give("starting", "exit", times=99)
    pool = process_pool(replace(images.task, source=Meddled(images.task.source, orders)))
    pool.publish(images.record(0))
    pool.submit(0, images.addresses(0), 0)
    lost = r"oracle must be there to score: got none, after 0 restarts \(oracle 0 ended with exit code 3 while starting"
    with pytest.raises(OracleLostError, match=lost):
        pool.collect(0)
    with pytest.raises(OracleLostError, match="__main__"):
        pool.submit(1, images.addresses(1), 0)
    assert pool.workers() == {}
    pool.close()


@pytest.mark.slow
def test_workers_that_are_gone_and_do_not_come_back_are_the_oracle_lost(tmp_path: Path) -> None:
    images, orders = case("images"), Orders(tmp_path)
    pool = process_pool(replace(images.task, source=Meddled(images.task.source, orders)))
    pool.publish(images.record(0))
    pool.submit(0, images.addresses(0), 0)
    pool.collect(0)
    orders.give("starting", "exit", times=99)
    os.kill(pool.workers()["oracle 0"], signal.SIGKILL)
    pool.submit(1, images.addresses(1), 0)
    with pytest.raises(OracleLostError, match=r"after 3 restarts \(oracle 0 ended with exit code 3 while starting\)"):
        pool.collect(1)
    pool.close()


@pytest.mark.slow
def test_a_worker_of_two_that_is_gone_leaves_its_work_to_the_other(tmp_path: Path) -> None:
    images, orders = case("images"), Orders(tmp_path)
    task = replace(images.task, source=Meddled(images.task.source, orders))
    pool = process_pool(task, workers=2, patience=Patience(restarts=0))
    undisturbed = score_all(pool, images)
    pool.retire(1 << 60)
    orders.give("scoring", "kill")
    with pytest.warns(RuntimeWarning, match="it is given up"):
        assert score_all(pool, images) == undisturbed
    assert len(pool.workers()) == 1
    pool.close()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import infer2train
from mined_runs import jittered, network, sgd
{guard}
    model = network()
    loader = infer2train.mine(jittered(), model, sgd(model), gamma=2, pool="process")
    for x, y in loader:
        print("a batch")
        break
    loader.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["if True:", "if __name__ == '__main__':"], ids=["without", "with"])
def test_a_script_without_a_guard_is_told_so(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), guard=guard))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=90)
    if guard == "if True:":
        assert done.returncode == 1, done.stderr
        assert done.stdout == ""
        assert "OracleLostError: an oracle must be there to score: got none, after 0 restarts" in done.stderr
        assert GUARD in done.stderr.splitlines()[-1]
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout == "a batch\n"


class Faulty(Sentences):
    """Sample 14 cannot be read by any process but the first."""

    def __init__(self, error: Exception) -> None:
        self._error, self._pid = error, os.getpid()

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 14 and os.getpid() != self._pid:
            raise self._error
        return super().__getitem__(index)


def greedy_score(outputs: Any, targets: Any) -> Tensor:
    """Wants four petabytes for the samples of class 1 alone."""
    return loss(outputs, targets) if int(targets[0]) != 1 else torch.empty(1 << 50)


def at(sample: int) -> Addresses:
    return Addresses(np.full(3, sample), np.arange(3))


@pytest.mark.parametrize("kind", [KeyError, pytest.param(ValueError, marks=pytest.mark.slow)])
def test_an_error_in_the_users_own_code_shows_where_and_the_pool_works_on(kind: type[Exception]) -> None:
    words = case("dictionaries")
    source = Replay(Faulty(kind("no such word")), default_collate)
    pool = process_pool(replace(words.task, source=source, score=greedy_score))
    pool.publish(words.record(0))
    for draw, sample in enumerate((0, 14, 3)):
        pool.submit(draw, at(sample), 0)
    undisturbed = bits(pool.collect(0))
    with pytest.raises(kind if kind is ValueError else OracleError, match="reading sample 14 under seed") as caught:
        pool.collect(1)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert "Traceback" in told
    assert "in __getitem__" in told
    assert pool.collect(2).draw == 2
    pool.forget()
    pool.submit(0, at(0), 0)
    assert bits(pool.collect(0)) == undisturbed
    pid = pool.workers()["oracle 0"]
    pool.submit(3, at(1), 0)
    with pytest.raises(OracleError, match=r"oracle 0 must have memory enough.*lower --oracle-chunk or --gamma"):
        pool.collect(3)
    pool.submit(0, at(0), 0)
    assert bits(pool.collect(0)) == undisturbed
    assert pool.workers() == {"oracle 0": pid}, "an answer with an error is no reason for another process"
    pool.close()


def test_what_cannot_be_sent_to_another_process_is_named_with_the_remedy() -> None:
    words = case("dictionaries").task
    score: Any = lambda outputs, targets: loss(outputs, targets)  # noqa: E731
    collate: Any = lambda samples: default_collate(samples)  # noqa: E731
    opened = Path(__file__).open()  # noqa: SIM115
    data: Dataset[Any] = Sentences()
    data.file = opened  # type: ignore[attr-defined]
    model = Small()
    model.hook = score
    remedy = r"to be picklable.*define classes and functions at the top of a module.*or use pool='inline'"
    for part, task in (
        ("score= and split=", replace(words, score=score)),
        ("the data set", replace(words, source=Replay(Sentences(), collate))),
        ("the data set", replace(words, source=Replay(data, default_collate))),
        ("the model", replace(case("images").task, model=model)),
    ):
        with pytest.raises(ValueError, match=f"needs {part}.*{remedy}"):
            packed(scoring_task(task))
    opened.close()


class FromFile(Source):
    """Data of which one number stands in a file."""

    def __init__(self, source: Source, file: Path) -> None:
        self._source, self._file = source, file

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, addresses: Addresses) -> Any:
        images, targets = self._source.batch(addresses)
        return images + int(self._file.read_text()), targets


def make_different(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], ProcessPool]:
    """A way to build pools whose worker has other data and other instructions."""
    images, file = case("images"), tmp_path / "number"

    def make(is_freshest: bool) -> ProcessPool:
        file.write_text("0")
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
        pool = process_pool(replace(images.task, source=FromFile(images.task.source, file)), is_freshest=is_freshest)
        file.write_text("1")
        pool.publish(images.record(0))
        return pool

    return make


def test_a_worker_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = torch.backends.cpu.get_cpu_capability()
    pool = make_different(monkeypatch, tmp_path)(False)
    differ = rf"data \w+ here, \w+ there; instructions {here} here, (NO AVX|DEFAULT) there"
    pool.submit(0, case("images").addresses(0), 0)
    with pytest.raises(OracleError, match=f"must compute as the trainer's process does: got {differ}; give both"):
        pool.collect(0)
    idle = 0
    while idle < 20:  # until it has scored, and its answer lies in the channel
        time.sleep(0.05)
        idle = idle + 1 if pool.phases()["oracle 0"] == "idle" else 0
    with pytest.raises(OracleError, match=differ):  # and nobody who goes on gets scores from it
        pool.collect(0)
    pool.close()


def test_with_the_freshest_weights_draws_outlive_the_version_that_they_were_asked_with() -> None:
    images = case("images")
    pool = process_pool(images.task, is_freshest=True)
    pool.publish(images.record(0))
    for draw in range(3):
        pool.submit(draw, images.addresses(draw), 0)
    pool.publish(images.record(100))
    pool.retire(100)
    assert list(pool.records) == [100]
    versions = [pool.collect(draw).version for draw in range(3)]
    assert versions == sorted(versions), "the newest that it had: it may have begun before it had the other"
    assert set(versions) <= {0, 100}
    later = itertools.count(3)

    def uses_the_newest() -> bool:
        draw = next(later)
        pool.submit(draw, images.addresses(draw), 100)
        return pool.collect(draw).version == 100

    until(uses_the_newest, "the newest comes into use")
    pool.close()


@pytest.mark.slow
def test_with_the_freshest_weights_a_worker_that_computes_otherwise_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = make_different(monkeypatch, tmp_path)(True)
    pool.submit(0, case("images").addresses(0), 0)
    with pytest.warns(RuntimeWarning, match=r"got data \w+ here, \w+ there; instructions"):
        assert pool.collect(0).version == 0
    pool.close()


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def sockets(pid: int) -> set[str]:
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def listening_or_connected(pid: int) -> set[str]:
    """Inodes of all of the network's sockets, of this process's name space."""
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        file = Path(f"/proc/{pid}/net/{name}")
        lines = file.read_text().splitlines()[1:] if file.exists() else []
        found |= {line.split()[9] for line in lines}
    return found


def named_memory(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    # Semaphores of other tests' DataLoaders have lost their names already.
    return [line for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")]


def test_a_pool_has_no_port_no_named_memory_and_leaks_no_descriptor(disturbed: Disturbed) -> None:
    pool, images = disturbed.pool, disturbed.case
    ours, theirs = os.getpid(), pool.workers()["oracle 0"]
    with socket.create_server(("127.0.0.1", 0)) as server:  # the canary: a port would be seen
        assert str(os.fstat(server.fileno()).st_ino) in sockets(ours) & listening_or_connected(ours)
    pool.publish(images.record(0))
    pool.submit(0, images.addresses(0), 0)
    pool.collect(0)
    assert sockets(theirs), "the worker has its end of the channel"
    assert not sockets(theirs) & listening_or_connected(theirs)
    assert not (sockets(ours) - disturbed.others) & listening_or_connected(ours)
    assert not named_memory(theirs)
    assert not named_memory(ours)

    counts = []
    for version in range(1, 51):
        pool.publish(replace(images.record(0), version=version))
        pool.submit(version, images.addresses(version), version)
        pool.collect(version)
        pool.retire(version)
        if version in (5, 50):
            gc.collect()
            counts.append((descriptors(ours), descriptors(theirs)))
    assert counts[0] == counts[1], "(ours, the worker's)"


def test_starting_and_ending_a_pool_leaves_no_descriptor_and_no_process(tmp_path: Path) -> None:
    images, orders = case("images"), Orders(tmp_path)
    orders.give("starting", "exit", times=99)
    counts = []
    for _ in range(3):
        pool = process_pool(replace(images.task, source=Meddled(images.task.source, orders)))
        pid = pool.workers()["oracle 0"]
        pool.close()
        assert not Path(f"/proc/{pid}").exists()
        gc.collect()
        counts.append(descriptors(os.getpid()))
    assert counts[0] == counts[1] == counts[2]
