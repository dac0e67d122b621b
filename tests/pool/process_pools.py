"""Process pools for tests: of the suite's tasks, started once for many checks, since a start takes seconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from conformance.pool import CHUNK, Task
from infer2train.oracle.scorer import Scorer
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.pipeline import ViewWorkers
from infer2train.pool.cores import available_cores
from infer2train.pool.process import ProcessPool
from infer2train.pool.task import ScoringTask


def scoring_task(task: Task) -> ScoringTask:
    """What a worker does for a task of the suite."""
    scorer = Scorer(score=task.score, distill_views=task.distill_views, device=torch.device("cpu"), chunk=CHUNK)
    engine = None if task.model is None else TorchEngine(task.model)
    workers = ViewWorkers(num_workers=task.num_workers)
    return ScoringTask(source=task.source, view_workers=workers, engine=engine, scorer=scorer)


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
