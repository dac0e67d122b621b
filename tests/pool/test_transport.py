"""The seam between supervisor and workers: another transport, of threads and queues, fulfils the whole contract.

And what a transport of processes promises of its messages: whole ones only, whatever the socket does to them.
"""

import os
import queue
import resource
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from conformance.pool import TASKS, Task, case, check_pool
from infer2train.draws.mining import Mining
from infer2train.pool.channel import Channel, channel_pair, wait_for
from infer2train.pool.messages import Cancel, Do, Done, Failed, News, Order, Take
from infer2train.pool.pool import Pool
from infer2train.pool.segment import Segment
from infer2train.pool.supervisor import SupervisedPool
from infer2train.pool.task import Task as Work
from infer2train.pool.transport import Desk, Link, LinkClosedError, Post, Transport
from infer2train.pool.worker import Worker
from infer2train.pool.worker_process import WorkerProcess
from pool.process_pools import scoring_task

pytestmark = pytest.mark.usefixtures("one_thread")


class Queues(Desk):
    """A desk in a thread: what is told lies in a queue, as it is."""

    def __init__(self, something_told: threading.Event) -> None:
        self.orders_in: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.phase, self.is_closed = "starting", False
        self._something_told = something_told

    def orders(self, *, wait: bool) -> list[Order]:
        orders = [self.orders_in.get()] if wait else []
        if self.is_closed:
            raise LinkClosedError("it hung up")
        return orders + emptied(self.orders_in)

    def tell(self, news: News) -> None:
        self.news.put(news)
        self._something_told.set()

    def enter(self, phase: str) -> None:
        self.phase = phase


def emptied(waiting: "queue.SimpleQueue[Any]") -> list[Any]:
    return [waiting.get() for _ in range(waiting.qsize())]


class ThreadLink(Link):
    """A worker in a thread of this process."""

    def __init__(self, task: Work, post: Post, something_told: threading.Event) -> None:
        self._desk, self._beats = Queues(something_told), 0
        worker = Worker(task, self._desk, post)
        self._thread = threading.Thread(target=worker.run, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def beats(self) -> int:
        """One more whenever somebody looks and the thread is there: it may start processes for any length of time."""
        self._beats += self._thread.is_alive()
        return self._beats

    @property
    def phase(self) -> str:
        return self._desk.phase

    def tell(self, order: Order) -> None:
        self._desk.orders_in.put(order)

    def heard(self) -> list[News]:
        return emptied(self._desk.news)

    def how_it_ended(self, *, patience_seconds: float = 0.0) -> str | None:
        self._thread.join(patience_seconds)
        return None if self._thread.is_alive() else "ended"

    def ended_by_itself(self) -> bool:
        return not self._thread.is_alive()

    def end(self, *, patience_seconds: float = 0.0) -> None:
        self._desk.is_closed = True
        self._desk.orders_in.put(Cancel(-1))  # it looks up
        self._thread.join()


class Threads(Transport):
    """Memory is one, so records and answers are handed over as they are."""

    def __init__(self, task: Work) -> None:
        self._task, self._something_told = task, threading.Event()

    def start(self, post: Post) -> Link:
        return ThreadLink(self._task, post, self._something_told)

    def wait(self, links: Iterable[Link], seconds: float) -> None:
        self._something_told.wait(seconds)
        self._something_told.clear()

    def close(self) -> None: ...


class ThreadPool(SupervisedPool):
    """All that a pool needs that has a transport."""

    @classmethod
    def built(cls, task: Work, mining: Mining, home: torch.device) -> tuple[Pool, tuple[str, ...]]:
        return cls(task, Threads(task), [Post(lane="oracle 0")]), ()


def threaded(task: Task) -> Pool:
    return ThreadPool.built(scoring_task(task), Mining(), torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def fresh() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: torch in a worker's thread, beside what other tests have left in a process (OpenVINO, ONNX
    Runtime), has ended in segmentation faults whose cause is not known."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize(
    "name",
    [n if n == "distillation" else pytest.param(n, marks=pytest.mark.slow) for n in TASKS if n != "dictionaries"],
)
def test_a_worker_does_not_know_what_carries_its_answers(name: str, fresh: ProcessPoolExecutor) -> None:
    """Not of replayed transforms, which draw from the random state that a thread shares with the trainer."""
    fresh.submit(check_threads, name).result()


def check_threads(name: str) -> None:
    check_pool(threaded, case(name))


MESSAGES = (
    Cancel(3),
    Do(1, 7, None, np.arange(5), np.arange(5) ** 9),
    Done(
        2,
        7,
        100,
        {"targets": [("a", torch.arange(3)), None], "values": torch.tensor([1.0, float("nan")])},
        {"refreshes": 1.0},
        [["oracle 0", "forward", 1.5, 0.25, {"draw": 7}]],
    ),
    Take(4, 100, Segment.of({"w": torch.arange(6.0).view(2, 3), "none": torch.empty(0, 2)}), {}, torch.ones(2)),
)


def received(channel: Channel, count: int) -> list[Any]:
    got: list[Any] = []
    while len(got) < count:
        wait_for([channel], 5.0)
        got += channel.receive()
    return got


def shown(message: Order | News) -> str:
    """All of a message, types and NaN too: its tensors are small enough to be printed whole."""
    return repr({n: dict(value) if isinstance(value, Segment) else value for n, value in vars(message).items()})


def test_messages_come_as_they_were_sent() -> None:
    ours, end = channel_pair()
    theirs = Channel(end)
    for message in MESSAGES:
        ours.send(message)
    for sent, got in zip(MESSAGES, received(theirs, len(MESSAGES)), strict=True):
        assert type(got) is type(sent)
        assert shown(got) == shown(sent)
    ours.close()
    with pytest.raises(LinkClosedError):
        theirs.receive()


def test_what_a_worker_writes_to_a_record_nobody_else_sees() -> None:
    """Without a checksum: memory that one process damages cannot reach the trainer or the next worker."""
    weights = Segment.of({"w": torch.ones(3)})
    ends = [channel_pair() for _ in range(2)]
    for ours, _ in ends:
        ours.send(Take(1, 0, weights, {}, None))
    first, second = (received(Channel(end), 1)[0].tensors for _, end in ends)
    first["w"].zero_()
    assert weights["w"].tolist() == second["w"].tolist() == [1, 1, 1]


def test_a_message_that_breaks_off_is_never_seen() -> None:
    """As of a worker that is killed while it tells: the descriptor of a segment is sent once the segment is whole."""
    ours, end = channel_pair()
    theirs = Channel(end)
    large = Done(1, 0, 0, {"values": torch.arange(1 << 10), "text": "x" * (1 << 22)}, {}, [])
    theirs.send(large)
    assert theirs.is_sending, "more than the socket takes at once"
    assert ours.receive() == []
    theirs.close()
    with pytest.raises(LinkClosedError):
        ours.receive()


@pytest.mark.parametrize("free", [0, 1], ids=["no-descriptor", "none-to-map-it"])
def test_what_came_without_its_memory_is_not_given_that_of_the_next(free: int) -> None:
    ours, end = channel_pair()
    theirs = Channel(end)
    ours.send(Take(1, 0, Segment.of({"w": torch.ones(3)}), {}, None))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, limits[1]))
    try:
        with pytest.raises(LinkClosedError, match="ulimit -n"):
            theirs.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    theirs.close()


def test_a_worker_that_says_why_it_goes_is_heard_by_whoever_had_more_to_tell_it() -> None:
    link = object.__new__(WorkerProcess)
    link.channel, end = channel_pair()
    theirs, many = Channel(end), np.arange(1 << 16)
    while not link.channel.is_sending:
        link.tell(Do(1, 1, 0, many, many))
    theirs.send(Failed(None, "OSError", "cannot open /data/x.h5", "where"))
    theirs.close()
    (said,) = link.heard()
    assert isinstance(said, Failed)
    assert said.message == "cannot open /data/x.h5"
    with pytest.raises(LinkClosedError):
        link.heard()
    link.channel.close()


def test_nobody_who_is_slow_holds_the_other_up() -> None:
    ours, end = channel_pair()
    theirs = Channel(end)
    count = 0
    while not theirs.is_sending or count < 5_000:
        theirs.send(Cancel(count))
        count += 1
    got: list[Any] = []
    while len(got) < count:
        got += ours.receive()
        theirs.flush()
    assert [message.ticket for message in got] == list(range(count))
