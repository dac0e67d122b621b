"""A worker: takes records and draws from its desk, does its task, and tells what came of it. Knows not where it runs.

One thread works; it looks for orders between chunks, so that a record is prepared (by a second thread) while draws of
the version before are still being done, and a draw that nobody wants any more is not begun.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.observe.timeline import Span, Timeline
from infer2train.oracle.refresher import Refresher
from infer2train.oracle.snapshot import Record
from infer2train.pool.fingerprint import fingerprint
from infer2train.pool.messages import (
    Cancel,
    Do,
    Done,
    Failed,
    Forget,
    Measured,
    Order,
    Ready,
    Retire,
    Stop,
    Take,
    Warned,
)
from infer2train.pool.task import Answer, Task
from infer2train.pool.transport import Desk, LinkClosedError, Post
from infer2train.sources.pipeline import AddressPipeline


@dataclass
class _Job:
    order: Do
    pieces: list[Addresses]
    is_put: bool = False
    is_wanted: bool = True


class _Numbered(dict[str, Tensor]):
    """A record's tensors, and the number under which they came."""

    number: int


def pass_warnings_on(desk: Desk) -> None:
    """Have the supervisor told what Python warns of in this process from now on."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, RuntimeWarning | UserWarning):
            desk.tell(Warned(str(message)))

    warnings.showwarning = show


class _DroppedError(Exception):
    """The draw that is being done is not wanted any more."""


class Worker:
    """Does draws for a supervisor that it knows only through its desk.

    Args:
        task: what is done.
        desk: where orders come, and news go.
        post: how it works.
    """

    def __init__(self, task: Task, desk: Desk, post: Post) -> None:
        self._task, self._desk, self._post = task, desk, post
        self._pipeline = AddressPipeline(task.source, like=task.view_workers)
        self._timeline = Timeline()
        self._spans: list[Span] = []
        self._timeline.listen(self._spans.append)
        self._jobs: deque[_Job] = deque()
        self._asides: deque[_Job] = deque()
        self._current: _Job | None = None
        self._is_stopped = False
        self._refresher: Refresher | None = None
        if task.engine is not None:
            self._refresher = Refresher(
                task.engine,
                task.monitor,
                self._timeline,
                post.lane,
                # A thread begins with as many threads as the environment says, not with as many as this one has.
                beside=ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)),
                on_calibrated=self._tell_ranges,
            )
        desk.tell(Ready(fingerprint(task.reader)))

    def run(self) -> None:
        """Work until told to stop, or until nobody is there any more."""
        try:
            while not self._is_stopped:
                if self._jobs:
                    self._do(self._jobs.pop() if self._post.is_newest_first else self._jobs.popleft())
                elif self._asides:
                    self._look()
                    if self._asides and not self._jobs:
                        self._do(self._asides.popleft())
                else:
                    self._desk.enter("idle")
                    self._look(wait=True)
        except LinkClosedError:
            pass
        finally:
            self._pipeline.close()
            self._task.reader.close()

    # Orders

    def _look(self, *, wait: bool = False) -> None:
        for order in self._desk.orders(wait=wait):
            self._obey(order)

    def _obey(self, order: Order) -> None:
        match order:
            case Take():
                self._take(order)
            case Do():
                waiting = self._asides if order.is_aside else self._jobs
                waiting.append(_Job(order, self._task.pieces(Addresses(order.ids, order.seeds))))
            case Cancel():
                self._cancel(order.ticket)
            case Forget():
                self._forget()
            case Retire():
                self._retire(order.version)
            case Stop():
                self._is_stopped = True
                self._pipeline.close()
                self._forget()

    def _take(self, order: Take) -> None:
        self._desk.enter("taking a record")
        assert self._refresher is not None
        tensors = _Numbered(order.tensors)
        tensors.number = order.number
        self._refresher.publish(Record(order.version, tensors, order.ranges, order.probe_scores))

    def _retire(self, version: int) -> None:
        if self._refresher is None:
            return
        if self._post.is_freshest:
            # What is being prepared comes into use, or weights that are published faster than prepared never would.
            self._refresher.skip(version)
        else:
            self._refresher.retire(version)

    def _cancel(self, ticket: int) -> None:
        self._asides = deque(job for job in self._asides if job.order.ticket != ticket)
        for job in [job for job in self._jobs if job.order.ticket == ticket]:
            job.is_wanted = False
            if not job.is_put:
                self._jobs.remove(job)

    def _forget(self) -> None:
        self._jobs.clear()
        self._asides.clear()
        self._pipeline.forget()
        if self._current is not None:
            self._current.is_wanted = False

    # One draw

    def _do(self, job: _Job) -> None:
        self._current = job
        try:
            self._tell_done(job.order.ticket, self._answer(job))
        except (_DroppedError, LinkClosedError):
            pass
        except Exception as error:
            self._pipeline.forget()
            for waiting in self._jobs:
                waiting.is_put = False
            if job.is_wanted:
                self._desk.tell(Failed.by(error, job.order.ticket))
        finally:
            self._current = None

    def _answer(self, job: _Job) -> Answer:
        self._put(job)
        if not job.is_wanted:
            for _ in job.pieces:
                self._pipeline.get()
            raise _DroppedError
        draw, version = job.order.draw, job.order.version
        if version is not None:
            self._use(version)
        making, using = ("validate", "validate") if job.order.is_aside else ("views", "forward")
        watched = self._timeline.watch(self._batches(job), self._post.lane, making, using, draw=draw, version=version)
        return self._task.answer(draw, watched)

    def _put(self, job: _Job) -> None:
        """Have the views of this draw made, and of those after it where there are processes for that."""
        for waiting in (job,) if self._post.is_newest_first else (job, *self._jobs):
            if not waiting.is_put and (waiting is job or self._pipeline.waiting < self._pipeline.depth):
                waiting.is_put = True
                for piece in waiting.pieces:
                    self._pipeline.put(piece)

    def _use(self, version: int) -> None:
        assert self._refresher is not None
        if self._post.is_freshest:
            ready = self._refresher.newest_ready()
            if ready is None and self._refresher.engine.version is not None:
                return  # what is in use is the newest that could be used at once
            # A draw may wait longer than its version is kept.
            version = max(self._refresher.records) if ready is None else ready
            self._refresher.retire(version)
        self._desk.enter("refreshing")
        self._refresher.use(version)

    def _batches(self, job: _Job) -> Iterator[Any]:
        for _ in job.pieces:
            self._look()
            if not job.is_wanted:
                raise _DroppedError
            self._desk.enter("making views")
            batch = self._pipeline.get()
            self._desk.enter("scoring")
            yield batch

    # News

    def _tell_done(self, ticket: int, answer: Answer) -> None:
        self._desk.enter("answering")
        totals = {} if self._refresher is None else self._refresher.totals()
        spans = [[s.lane, s.name, s.started, s.seconds, s.details] for s in self._spans]
        self._spans.clear()
        self._desk.tell(Done(ticket, answer.draw, answer.version, answer.tree, totals, spans))

    def _tell_ranges(self, record: Record) -> None:
        assert isinstance(record.tensors, _Numbered)
        self._desk.tell(Measured(record.tensors.number, record.version, dict(record.ranges)))
