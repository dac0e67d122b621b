"""The stream pool: the oracle on the trainer's own device, in a thread and a CUDA stream of its own.

What a GPU leaves idle between the trainer's kernels goes to the oracle. The work is the inline pool's, called by one
other thread; only the order in which the device works is different, and so the answers are the same.
"""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import torch

from infer2train.batches import tensors_of
from infer2train.draws.addresses import Addresses
from infer2train.draws.mining import Mining
from infer2train.oracle.snapshot import Record
from infer2train.pool.inline import InlinePool
from infer2train.pool.pool import Pool, require_published
from infer2train.pool.task import Answer, Task

T = TypeVar("T")


@dataclass(frozen=True)
class _Published:
    record: Record
    taken: Future[None]

    def measured(self, measured: Record | None) -> Record:
        """The record with its ranges, where they are measured."""
        return self.record if measured is None or measured.tensors is not self.record.tensors else measured


@dataclass(frozen=True)
class _Submitted:
    draw: int
    answer: Future[Answer]


class StreamPool(Pool):
    """Does draws in a thread of its own.

    Args:
        task: what is done; its engine runs on `device`.
        device: on CUDA the oracle gets a stream of its own; elsewhere it has only the thread.
        queue_depth: draws that are submitted ahead.

    Raises:
        ValueError: candidates would be made in the thread, by transforms that use the trainer's random state.
    """

    def __init__(self, task: Task, device: torch.device, *, queue_depth: int = 4) -> None:
        super().__init__()
        if task.source.moves_random_state and task.view_workers.num_workers == 0:
            raise ValueError(
                "pool='stream' needs views that leave the trainer's random state alone: got a data set whose "
                "transforms draw from it, and num_workers=0; pass oracle_num_workers=1 or more"
            )
        self.queue_depth = queue_depth
        self._pool = InlinePool(task)
        self.timeline = self._pool.timeline
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's
        # A thread begins with as many threads as the environment says, not with as many as this one has.
        self._thread = ThreadPoolExecutor(1, "oracle", torch.set_num_threads, (torch.get_num_threads(),))
        self._published: dict[int, _Published] = {}
        self._submitted: deque[_Submitted] = deque()
        self._seconds = {"views": 0.0, "scoring": 0.0, "publishing": 0.0}
        self._began = perf_counter()
        self._is_closed = False

    @classmethod
    def built(cls, task: Task, mining: Mining, home: torch.device) -> tuple[Pool, tuple[str, ...]]:
        if home.type != "cuda":
            raise ValueError(
                f"pool='stream' shares a CUDA device with the trainer: got a model on {home}; use pool='process', or "
                "move the model to CUDA"
            )
        return cls(task, home, queue_depth=mining.queue_depth), ()

    @property
    def records(self) -> Mapping[int, Record]:
        measured = self._pool.records
        return {v: published.measured(measured.get(v)) for v, published in self._published.items()}

    def publish(self, record: Record) -> None:
        started = perf_counter()
        written = self._event()
        self._published[record.version] = _Published(record, self._call(lambda: self._take(record, written)))
        self._seconds["publishing"] += perf_counter() - started

    def retire(self, version: int) -> None:
        self._published = {v: published for v, published in self._published.items() if v >= version}
        self._call(lambda: self._pool.retire(version))

    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        require_published(draw, version, self.records)
        taken = None if version is None else self._published[version].taken
        self._submitted.append(_Submitted(draw, self._call(lambda: self._do(draw, addresses, version, taken))))

    def is_ready(self, draw: int) -> bool:
        return any(submitted.draw == draw and submitted.answer.done() for submitted in self._submitted)

    def collect(self, draw: int) -> Answer:
        submitted = self._oldest(draw)
        started = perf_counter()
        try:
            answer = submitted.answer.result()
        finally:
            self._seconds["scoring"] += perf_counter() - started
        if self._stream is not None:
            # They were allocated on the oracle's stream, and are freed when the trainer has used them on its own.
            for tensor in tensors_of(answer.tree):
                if tensor.is_cuda:
                    tensor.record_stream(torch.cuda.current_stream(self._device))
        return answer

    def cancel(self, draw: int) -> None:
        self._oldest(draw).answer.cancel()

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    def totals(self) -> dict[str, float]:
        return self._pool.totals() | {"oracle_available_seconds": perf_counter() - self._began}

    def forget(self) -> None:
        for submitted in self._submitted:
            submitted.answer.cancel()
        self._submitted.clear()
        # The views of a draw that is being scored just now must be out of the way before the next ones are asked for.
        self._call(self._pool.forget).result()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.forget()
            self._call(self._pool.close).result()
            self._thread.shutdown()

    def _oldest(self, draw: int) -> _Submitted:
        assert self._submitted, draw
        assert self._submitted[0].draw == draw, (self._submitted[0].draw, draw)
        return self._submitted.popleft()

    # In the thread

    def _call(self, function: Callable[[], T]) -> "Future[T]":
        def call() -> T:
            with self._on_stream():
                return function()

        return self._thread.submit(call)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _take(self, record: Record, written: "torch.cuda.Event | None") -> None:
        if written is not None and self._stream is not None:
            self._stream.wait_event(written)
        self._pool.publish(record)

    def _do(self, draw: int, addresses: Addresses, version: int | None, taken: "Future[None] | None") -> Answer:
        if taken is not None:
            taken.result()  # it came before; this says why it failed, if it did
        try:
            self._pool.submit(draw, addresses, version)
            answer = self._pool.collect(draw)
        except Exception:
            self._pool.forget()  # or the draws after it would get what is left of its views
            raise
        if self._stream is not None:
            self._stream.synchronize()  # of the oracle's stream alone: whoever collects may use them on any
        return answer

    def _event(self) -> "torch.cuda.Event | None":
        """What the oracle's stream must wait for: the copy of the weights, on the trainer's."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()
