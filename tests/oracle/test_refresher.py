"""Which programs are prepared, where weights are published faster than an engine takes them in."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from torch import nn

from conformance.pool import case
from infer2train.observe.timeline import Timeline
from infer2train.oracle.engine import Prepared
from infer2train.oracle.refresher import Refresher
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.pool.messages import Do, Done, News, Order, Retire, Stop, Take
from infer2train.pool.transport import Desk, Post
from infer2train.pool.worker import Worker
from pool.process_pools import scoring_task

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = nn.Linear(2, 2)


class Slow(TorchEngine):
    """Prepares a program when it is let."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.may_go, self.begun = threading.Semaphore(0), list[int]()

    def prepared(self, record: Record) -> Prepared:
        self.begun.append(record.version)
        assert self.may_go.acquire(timeout=60)
        return super().prepared(record)


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def until_idle(beside: ThreadPoolExecutor) -> None:
    beside.submit(lambda: None).result(timeout=60)


def test_of_retired_versions_only_the_one_that_was_begun_is_prepared(beside: ThreadPoolExecutor) -> None:
    engine = Slow(MODEL)
    refresher = Refresher(engine, None, Timeline(), "oracle", beside=beside)
    for version in range(5):
        refresher.publish(snapshot(MODEL, version))
        refresher.retire(version)
    engine.may_go.release(5)
    until_idle(beside)
    assert engine.begun in ([0, 4], [4]), "the first may have been retired before it was begun"
    refresher.use(4)
    assert engine.version == 4


class Script(Desk):
    """Gives a worker one order after another, and keeps what it says."""

    def __init__(self, orders: list[Order]) -> None:
        self.waiting, self.done = orders, list[Done]()

    def orders(self, *, wait: bool) -> list[Order]:
        if not wait:
            return []
        time.sleep(0.02)
        return [self.waiting.pop(0)]

    def tell(self, news: News) -> None:
        if isinstance(news, Done):
            self.done.append(news)

    def enter(self, phase: str) -> None: ...


class Late(TorchEngine):
    """Prepares a program for longer than it takes until the next weights are published."""

    def prepared(self, record: Record) -> Prepared:
        time.sleep(0.1)
        return super().prepared(record)


def test_freshest_weights_come_into_use_where_they_are_published_faster_than_prepared() -> None:
    images = case("images")
    task = scoring_task(images.task)
    model = images.task.model
    assert model is not None
    orders: list[Order] = []
    for number in range(20):
        record, at = snapshot(model, number), images.addresses(number)
        orders += [
            Take(number, number, record.tensors, {}, None),
            Retire(number),
            Do(number, number, number, at.ids, at.seeds),
        ]
    desk = Script([*orders, Stop()])
    Worker(replace(task, engine=Late(model)), desk, Post(lane="oracle 0", is_freshest=True)).run()
    used = [done.version for done in desk.done]
    assert len(used) == 20
    assert used == sorted(used)
    assert len(set(used)) > 3, used
