"""A worker in a Ray actor: its life, and its desk. It runs on whatever node of a cluster has a place for it.

Ray carries a call to an actor at most once. So everything that is said has a number: what was not acknowledged is said
again, and what comes twice is taken once.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infer2train.machine.cores import claimed_core, on_cores
from infer2train.pool.messages import Do, Failed, News, Order, Take
from infer2train.pool.packing import unpacked
from infer2train.pool.segment import Segment
from infer2train.pool.transport import Desk, Post
from infer2train.pool.worker import Worker, pass_warnings_on

HEAR_SECONDS = 0.5
"""After which an actor that has nothing to tell says that it lives."""


@dataclass(frozen=True)
class Sent:
    """An order on its way; a record's tensors are in the object store, as `kept` puts them there."""

    number: int
    order: Order
    record: list[Any]
    """A reference to them, in a list, since Ray would else wait for them before it delivers the order."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an actor says when it is asked."""

    pid: int
    node: str
    """Its address."""
    node_id: str
    phase: str
    taken: int
    """The number of the last order that has come, as have all before it."""
    news: list[tuple[int, News]]
    clock: float
    """Of its machine, by `perf_counter`, at about the moment when it said so."""
    is_over: bool
    """Whether the worker has ended, and no more news will come."""


class RayDesk(Desk):
    """Orders and news that lie ready in an actor; its calls come in threads of their own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._early: dict[int, Sent] = {}
        self._sent: deque[Sent] = deque()
        self._news: deque[tuple[int, News]] = deque()
        self._taken, self._told = 0, 0
        self._phase, self._is_over = "starting", False

    def orders(self, *, wait: bool) -> list[Order]:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._sent)
            sent = list(self._sent)
            self._sent.clear()
        return [_whole(one) for one in sent]

    def tell(self, news: News) -> None:
        with self._changed:
            self._told += 1
            self._news.append((self._told, news))
            self._changed.notify_all()

    def enter(self, phase: str) -> None:
        self._phase = phase

    def leave(self) -> None:
        """Say that nobody sits here any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    # The actor's calls

    def take(self, sent: Iterable[Sent]) -> None:
        """Orders, in whatever order they come, and however often."""
        with self._changed:
            self._early |= {one.number: one for one in sent if one.number > self._taken}
            while (following := self._early.pop(self._taken + 1, None)) is not None:
                self._taken += 1
                self._sent.append(following)
            self._changed.notify_all()

    def said(self, heard: int, node: str, node_id: str = "") -> Reply:
        """What was told after the news of that number; waits for some, but not for long."""
        with self._changed:
            while self._news and self._news[0][0] <= heard:
                self._news.popleft()
            self._changed.wait_for(lambda: self._news or self._is_over, HEAR_SECONDS)
            return Reply(
                pid=os.getpid(),
                node=node,
                node_id=node_id,
                phase=self._phase,
                taken=self._taken,
                news=list(self._news),
                clock=perf_counter(),
                is_over=self._is_over,
            )


class Oracle:
    """The actor: a worker in a thread of its own, and its desk.

    Args:
        task: a reference to the pickled task, in a list.
        post: the worker's.
        matmul_precision: torch's setting in the trainer's process.
        paths: where the trainer's process finds modules; used as far as there are such folders here.
    """

    def __init__(self, task: list[Any], post: Post, matmul_precision: str, paths: list[str]) -> None:
        import ray

        sys.path.extend(path for path in paths if path not in sys.path and Path(path).exists())
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
        self._desk, self._node = RayDesk(), (address, ray.get_runtime_context().get_node_id())
        with on_cores(post.cores or claimed_core()):  # a thread runs where the one ran that started it
            threading.Thread(target=self._work, args=(task, post, matmul_precision), daemon=True).start()

    def take(self, sent: list[Sent]) -> None:
        """Take orders."""
        self._desk.take(sent)

    def hear(self, heard: int, sent: list[Sent]) -> Reply:
        """Take orders, and say what there is to say after that number."""
        self._desk.take(sent)
        return self._desk.said(heard, *self._node)

    def _work(self, task: list[Any], post: Post, matmul_precision: str) -> None:
        import ray

        torch.set_num_threads(post.threads)
        torch.set_float32_matmul_precision(matmul_precision)
        try:
            worker = Worker(unpacked(ray.get(task[0])), self._desk, post)  # from the trainer's process
            pass_warnings_on(self._desk)
            worker.run()
        except Exception as error:
            self._desk.tell(Failed.by(error, None))
        self._desk.leave()


def kept(tensors: Mapping[str, Tensor]) -> list[Any]:
    """A reference to tensors in the object store, in a list: from there each node fetches them once."""
    import ray

    segment = Segment.of(tensors)
    return [ray.put((segment.layout, np.frombuffer(segment.memory, np.uint8)))]


def _whole(sent: Sent) -> Order:
    """The order with its record, and with memory of its own: what Ray hands out is not to be written to."""
    match sent.order:
        case Do(ids=ids, seeds=seeds):
            return replace(sent.order, ids=ids.copy(), seeds=seeds.copy())
        case Take():
            return replace(sent.order, tensors=_fetched(sent.record[0]))
    return sent.order


def _fetched(reference: Any) -> Segment:
    import ray

    layout, content = ray.get(reference)
    segment = Segment(layout)
    segment.memory[:] = content
    segment.close()
    return segment
