"""Process pools for tests: of the suite's tasks, started once for many checks, since a start takes seconds."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conformance.pool import CHUNK, Case, Task
from infer2train.batches import tensors_of
from infer2train.draws.addresses import Addresses
from infer2train.machine.cores import available_cores
from infer2train.oracle.scorer import Scorer
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.pool.process import ProcessPool
from infer2train.pool.pulse import Pulse
from infer2train.pool.task import Answer, ScoringTask
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.source import Source

CPU = torch.device("cpu")


def scoring_task(task: Task, device: torch.device = CPU) -> ScoringTask:
    """What a worker does for a task of the suite."""
    scorer = Scorer(score=task.score, distill_views=task.distill_views, chunk=CHUNK)
    engine = None if task.model is None else TorchEngine(task.model, device=device)
    workers = ViewWorkers(num_workers=task.num_workers)
    reader = Reader(task.source, workers)
    return ScoringTask(source=task.source, reader=reader, view_workers=workers, engine=engine, scorer=scorer)


def process_pool(task: Task, **settings: Any) -> ProcessPool:
    """A started pool, on one core unless told otherwise."""
    return ProcessPool(scoring_task(task), **{"cores": available_cores()[-1:], **settings})


class Shared(ProcessPool):
    """One started pool for one check after another: a check's `close` leaves it as it was when it was new."""

    def close(self) -> None:
        self.forget()
        self.retire(1 << 60)

    def end(self) -> None:
        super().close()


class Pools:
    """Pools by the number of processes that make their views."""

    def __init__(self, **settings: Any) -> None:
        self._settings = {"cores": available_cores()[-1:], **settings}
        self._pools: dict[int, Shared] = {}

    def __call__(self, task: Task) -> Shared:
        if task.num_workers not in self._pools:
            self._pools[task.num_workers] = Shared(scoring_task(task), **self._settings)
        return self._pools[task.num_workers]

    def end(self) -> None:
        for pool in self._pools.values():
            pool.end()


@contextmanager
def pools(**settings: Mapping[str, Any]) -> Iterator[Pools]:
    """Within, a way to build pools; after, none of their processes is left."""
    made = Pools(**settings)
    try:
        yield made
    finally:
        made.end()


class Orders:
    """What a worker is to do to itself, and on entering which phase; each order is obeyed so many times.

    Written by the test's process, read by the worker's: a fault comes at the phase that it is meant for, however busy
    the machine is.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "orders"

    def give(self, phase: str, what: str, times: int = 1) -> None:
        """Have a worker `kill`, `stop` or `exit` when it enters a phase."""
        self._file.write_text(f"{phase},{what},{times}")

    def are_obeyed(self) -> bool:
        return not self._file.exists()

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    def obey(self, phase: str) -> None:
        if not self._file.exists():
            return
        wanted, what, times = self._file.read_text().split(",")
        if phase != wanted:
            return
        self._file.unlink()
        if int(times) > 1:
            self.give(phase, what, int(times) - 1)
        if what == "exit":
            os._exit(3)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[what])


class Meddled(Source):
    """The same data; the process that unpacks it obeys orders.

    Args:
        source: the data.
        orders: which.
    """

    def __init__(self, source: Source, orders: Orders) -> None:
        self._source, self._orders = source, orders

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._orders.obey("starting")
        enter = Pulse.enter

        def watched(pulse: Pulse, phase: str) -> None:
            enter(pulse, phase)
            self._orders.obey(phase)

        Pulse.enter = watched  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, addresses: Addresses) -> Any:
        return self._source.batch(addresses)


def bits(answer: Answer) -> bytes:
    """What was said of a draw, and by which version."""
    said = b"|".join(tensor.numpy().tobytes() for tensor in tensors_of(answer.tree))
    return f"{answer.draw} {answer.version} ".encode() + said


def score_all(pool: ProcessPool, case: Case, draws: int = 6) -> list[bytes]:
    """Publish all versions among the draws that they score, and collect what was said, in bits."""
    said = []
    for version in case.versions:
        assert version is not None
        pool.publish(case.record(version))
        for draw in range(draws):
            pool.submit(draw, case.addresses(draw), version if draw % 2 else case.versions[0])
        said += [bits(pool.collect(draw)) for draw in range(draws)]
    return said
