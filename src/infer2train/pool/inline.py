"""The inline pool: the oracle in the trainer's own process and time. The reference for every other pool."""

from collections import deque
from collections.abc import Mapping
from time import perf_counter

import torch

from infer2train.draws.addresses import Addresses
from infer2train.draws.mining import Mining
from infer2train.oracle.refresher import Refresher
from infer2train.oracle.snapshot import Record
from infer2train.pool.pool import Pool, require_published
from infer2train.pool.task import Answer, Task
from infer2train.sources.pipeline import AddressPipeline

LANE = "oracle"


class InlinePool(Pool):
    """Does a draw when it is collected; its views may have been made ahead by the pipeline's workers.

    Args:
        task: what is done.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task
        self._pipeline = AddressPipeline(task.source, like=task.view_workers)
        self._refresher: Refresher | None = None
        if task.engine is not None:
            self._refresher = Refresher(task.engine, task.monitor, self.timeline, LANE)
        self._submitted: deque[tuple[int, int, int | None]] = deque()
        self._publishing_seconds = 0.0

    @classmethod
    def built(cls, task: Task, mining: Mining, home: torch.device) -> tuple[Pool, tuple[str, ...]]:
        return cls(task), ()

    @property
    def records(self) -> Mapping[int, Record]:
        return {} if self._refresher is None else self._refresher.records

    def publish(self, record: Record) -> None:
        if self._refresher is not None:
            started = perf_counter()
            self._refresher.publish(record)
            self._publishing_seconds += perf_counter() - started

    def retire(self, version: int) -> None:
        if self._refresher is not None:
            self._refresher.retire(version)

    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        require_published(draw, version, self.records)
        pieces = self._task.pieces(addresses)
        for piece in pieces:
            self._pipeline.put(piece)
        self._submitted.append((draw, len(pieces), version))

    def is_ready(self, draw: int) -> bool:
        return True

    def collect(self, draw: int) -> Answer:
        expected, num_chunks, version = self._submitted.popleft()
        assert draw == expected, (draw, expected)
        if version is not None:
            assert self._refresher is not None
            self._refresher.use(version)
        views = (self._pipeline.get() for _ in range(num_chunks))
        watched = self.timeline.watch(views, LANE, "views", "forward", draw=draw, version=version)
        return self._task.answer(draw, watched)

    def cancel(self, draw: int) -> None:
        expected, num_chunks, _ = self._submitted.popleft()
        assert draw == expected, (draw, expected)
        for _ in range(num_chunks):
            self._pipeline.get()

    def seconds(self) -> dict[str, float]:
        spent = self.timeline.seconds(LANE)
        publishing = self._publishing_seconds + spent.get("refresh", 0.0)
        return {"views": spent.get("views", 0.0), "scoring": spent.get("forward", 0.0), "publishing": publishing}

    def totals(self) -> dict[str, float]:
        return {} if self._refresher is None else self._refresher.totals()

    def forget(self) -> None:
        self._submitted.clear()
        self._pipeline.forget()

    def close(self) -> None:
        self._pipeline.close()
        super().close()
