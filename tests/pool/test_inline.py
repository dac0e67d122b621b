"""The inline pool against the suite, and the suite against pools that are broken on purpose."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conformance.pool import TASKS, Task, case, check_pool
from infer2train.batches import call_model
from infer2train.draws.addresses import Addresses
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.snapshot import Record
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.pool.inline import InlinePool
from infer2train.pool.pool import check_answer
from infer2train.pool.task import Answer
from pool.process_pools import scoring_task

pytestmark = pytest.mark.usefixtures("one_thread")


class Inline(InlinePool):
    """The pool of a task, for subclasses to break."""

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(replace(scoring_task(task), engine=self.make_engine()))

    def make_engine(self) -> Engine | None:
        return None if self.task.model is None else TorchEngine(self.task.model)


@pytest.mark.parametrize("name", TASKS)
def test_conformance(name: str) -> None:
    before = set(multiprocessing.active_children())
    check_pool(Inline, case(name))
    assert set(multiprocessing.active_children()) <= before, "a closed pool leaves no process behind"


def but(answer: Answer, **parts: Any) -> Answer:
    """The answer with some parts of its tree replaced."""
    return replace(answer, tree=answer.tree | parts)


class Stale(Inline):
    """Scores with the weights that it had first, and says the version asked for."""

    def collect(self, draw: int) -> Answer:
        draws, pieces, version = self._submitted[0]
        self._submitted[0] = (draws, pieces, min(self.records))
        return replace(super().collect(draw), version=version)


class Mislabels(Inline):
    def collect(self, draw: int) -> Answer:
        return replace(super().collect(draw), version=max(self.records))


class Permutes(Inline):
    def collect(self, draw: int) -> Answer:
        answer = super().collect(draw)
        return but(answer, values=answer.tree["values"].roll(1))


class AnswersAnotherDraw(Inline):
    """Scores the candidates of the draw before, under the right number."""

    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        before, self.before = getattr(self, "before", addresses), addresses
        super().submit(draw, before, version)


class NumbersDrawsAnew(Inline):
    def collect(self, draw: int) -> Answer:
        self.answered = getattr(self, "answered", -1) + 1
        return replace(super().collect(draw), draw=self.answered)


class OthersTargets(Inline):
    def collect(self, draw: int) -> Answer:
        answer = super().collect(draw)
        return but(answer, targets=answer.tree["targets"].sort().values)


class RunsInTrainingMode(Inline):
    def make_engine(self) -> Engine:
        engine = TorchEngine(self.task.model, fold=False)
        for module in engine._network.modules():
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
        return engine


class MovesTheTrainersStatistics(Inline):
    def collect(self, draw: int) -> Answer:
        with torch.no_grad():
            call_model(self.task.model, self.task.source.batch(Addresses(np.arange(4), np.arange(4)))[0])
        return super().collect(draw)


class Reseeds(Inline):
    def collect(self, draw: int) -> Answer:
        torch.manual_seed(draw)
        return super().collect(draw)


class TakesAnyVersion(Inline):
    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        nearest = min(self.records, key=lambda published: abs(published - version), default=version)
        super().submit(draw, addresses, nearest if self.records else None)


class AnswersInItsOwnOrder(Inline):
    def collect(self, draw: int) -> Answer:
        return super().collect(self._submitted[0][0])


class RemembersWhatWasSubmitted(Inline):
    def forget(self) -> None: ...


class KeepsViewsAfterForget(Inline):
    """Forgets draws, but not the views that were asked for."""

    def forget(self) -> None:
        self._submitted.clear()


class ForgetsRecordsToo(Inline):
    def forget(self) -> None:
        super().forget()
        super().retire(10**9)


class ClosesOnce(Inline):
    def close(self) -> None:
        super().close()
        self._pipeline = None


class KeepsWhatWasPublishedFirst(Inline):
    def publish(self, record: Record) -> None:
        if record.version not in self.records:
            super().publish(record)


class KnowsWeightsByTheirNumber(Inline):
    def publish(self, record: Record) -> None:
        super().publish(record)
        if self._task.engine.version == record.version:
            self._refresher._in_use = self.records[record.version]


class KeepsRecords(Inline):
    def retire(self, version: int) -> None: ...


class HidesRecords(Inline):
    """Refuses a retired version, and keeps its weights nevertheless."""

    def retire(self, version: int) -> None:
        self.kept = dict(self.records)
        super().retire(version)


class CancelsNothing(Inline):
    """Leaves the views of a draw that nobody wants to the next."""

    def cancel(self, draw: int) -> None:
        self._submitted.popleft()


class DependsOnTheQueue(Inline):
    def collect(self, draw: int) -> Answer:
        queued = len(self._submitted)
        answer = super().collect(draw)
        return but(answer, values=answer.tree["values"] * (1 + 1e-6 * queued))


class DependsOnWorkers(Inline):
    def collect(self, draw: int) -> Answer:
        answer = super().collect(draw)
        return but(answer, values=answer.tree["values"] * (1 + 1e-6 * self.task.num_workers))


class CountsNoTime(Inline):
    def seconds(self) -> dict[str, float]:
        return dict.fromkeys(super().seconds(), 1.0)


class WritesToRecords(Inline):
    def publish(self, record: Record) -> None:
        for tensor in record.tensors.values():
            tensor.mul_(1)[...].view(-1)[:1].add_(1)
        super().publish(record)


BROKEN = {
    Stale: "differ from the reference",
    Mislabels: "scores say version 100, asked for was 0",
    Permutes: "values of draw 0 by version 0 differ",
    AnswersAnotherDraw: "targets are not those|differ from the reference",
    NumbersDrawsAnew: "scores are of draw",
    OthersTargets: "targets are not those",
    RunsInTrainingMode: "differ from the reference",
    MovesTheTrainersStatistics: "must not move the trainer's weights or statistics",
    Reseeds: "nor move torch's random state",
    TakesAnyVersion: "must be refused|unpublished version",
    AnswersInItsOwnOrder: "collected out of order",
    RemembersWhatWasSubmitted: "targets are not those|must be forgotten",
    KeepsViewsAfterForget: "targets are not those|differ from the reference",
    ForgetsRecordsToo: "by a published version: got 0",
    ClosesOnce: "None",
    KeepsWhatWasPublishedFirst: "differ from the reference",
    KnowsWeightsByTheirNumber: "differ from the reference",
    KeepsRecords: "retired records must be let go|no longer published",
    HidesRecords: "retired records must be let go",
    DependsOnTheQueue: "submitted ahead, with 0 workers",
    DependsOnWorkers: "submitted ahead, with 2 workers",
    CountsNoTime: "seconds stand still",
    CancelsNothing: "targets are not those|differ from the reference",
    WritesToRecords: "differ from the reference|never writes to a record",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_the_suite_sees_what_is_broken(broken: type[Inline]) -> None:
    with pytest.raises((AssertionError, ValueError, AttributeError), match=BROKEN[broken]):
        check_pool(broken, case("images"))


class AveragesProbabilities(Inline):
    """Takes the logarithm of the mean instead of the mean of logarithms."""

    def collect(self, draw: int) -> Answer:
        answer = super().collect(draw)
        return but(answer, log_probabilities=answer.tree["log_probabilities"].log_softmax(1))


class AveragesOtherSlots(Inline):
    def collect(self, draw: int) -> Answer:
        answer = super().collect(draw)
        return but(answer, log_probabilities=answer.tree["log_probabilities"].flip(0))


@pytest.mark.parametrize("broken", [AveragesProbabilities, AveragesOtherSlots])
def test_the_suite_sees_wrong_log_probabilities(broken: type[Inline]) -> None:
    with pytest.raises(AssertionError, match="log_probabilities of draw 0 by version 0 differ"):
        check_pool(broken, case("distillation"))


class RunsTheModelForLabels(Inline):
    def collect(self, draw: int) -> Answer:
        return but(super().collect(draw), values=torch.zeros(21))


def test_the_suite_sees_scores_that_nobody_asked_for() -> None:
    with pytest.raises(AssertionError, match="values must be given exactly where"):
        check_pool(RunsTheModelForLabels, case("labels only"))


def test_scoring_in_the_trainers_process_takes_the_trainers_time() -> None:
    images = case("images")
    pool, started = Inline(images.task), perf_counter()
    pool.publish(images.record(0))
    for draw in range(3):
        pool.submit(draw, images.addresses(draw), 0)
    assert pool.seconds()["scoring"] == pool.seconds()["views"] == 0, "a draw is scored when it is collected"
    for draw in range(3):
        pool.collect(draw)
    assert sum(pool.seconds().values()) <= perf_counter() - started, "no second may be counted twice"


class Counted(TorchEngine):
    refreshed: tuple[int, ...] = ()

    def use(self, prepared: Prepared) -> None:
        super().use(prepared)
        self.refreshed += (prepared.version,)


class CountsRefreshes(Inline):
    def make_engine(self) -> Engine:
        self.counted = Counted(self.task.model)
        return self.counted


def test_an_engine_is_refreshed_when_the_version_changes_and_only_then() -> None:
    images = case("images")
    pool = CountsRefreshes(images.task)
    for version in (0, 100, 200):
        pool.publish(images.record(version))
    assert pool.counted.refreshed == (), "a version that no draw asks for costs nothing"
    for draw, version in enumerate((0, 0, 0, 200, 200, 0)):
        pool.submit(draw, images.addresses(draw), version)
    pool.collect(0)
    pool.forget()
    for draw, version in enumerate((0, 200, 200, 0)):
        pool.submit(draw, images.addresses(draw), version)
        pool.collect(draw)
    assert pool.counted.refreshed == (0, 200, 0)


@pytest.mark.parametrize(("draw", "version"), [(4, 100), (3, 0), (3, None)])
def test_scores_of_another_draw_or_version_are_an_error(draw: int, version: int | None) -> None:
    answer = Answer(3, 100, {"targets": torch.zeros(1)})
    assert check_answer(answer, 3, 100) is answer
    with pytest.raises(RuntimeError, match=f"got draw 3 by version 100 for draw {draw} by version {version}"):
        check_answer(answer, draw, version)


def test_a_view_that_fails_leaves_the_pool_usable() -> None:
    images = case("images")
    pool = Inline(images.task)
    pool.publish(images.record(0))
    outside = Addresses(np.array([10**6]), np.array([0]))
    wait: Callable[[], Answer] = lambda: pool.collect(0)  # noqa: E731
    pool.submit(0, outside, 0)
    with pytest.raises(IndexError, match="1000000"):
        wait()
    pool.forget()
    pool.submit(0, images.addresses(0), 0)
    assert torch.equal(pool.collect(0).tree["targets"], images.expected(0, 0).tree["targets"])
