"""The inline pool with engines that run integers: ranges are published, measured once, and totals come out."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from conformance.engine import needs
from conformance.pool import (
    CHECKS,
    CHUNK,
    Case,
    Task,
    case,
    check_ahead_and_workers,
    check_published_again,
    check_retire,
    check_trainer_is_left_alone,
    check_versions_interleaved,
    scored,
)
from infer2train.batches import call_model, split_batch
from infer2train.draws import scores
from infer2train.draws.losses import mean_log_probabilities
from infer2train.oracle.engines import build_engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.scorer import Scores
from infer2train.oracle.snapshot import NotFiniteError, Record
from infer2train.pool.inline import InlinePool
from infer2train.pool.task import Answer
from pool.process_pools import scoring_task

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES = ("simulated:b8", "openvino:int8", "onnxruntime:int8")
CPU = torch.device("cpu")


def task(name: str) -> Task:
    return case(name).task


class Counted(GivenSamples):
    """The same inputs for every version, and what was asked for: (version, rows)."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        super().__init__(inputs, targets)
        self.asked: list[tuple[int, int]] = []

    def calibration(self, version: int, rows: int) -> Any:
        self.asked.append((version, rows))
        return super().calibration(version, rows)


@functools.cache
def samples(name: str) -> Counted:
    return Counted(*split_batch(task(name).source.batch(case(name).addresses(9))))


@functools.cache
def converted(spec: str, name: str) -> LoweredEngine:
    needs(spec)
    model = task(name).model
    assert model is not None
    engine = build_engine(spec, model, samples=samples(name), rows=CHUNK)
    assert isinstance(engine, LoweredEngine)
    return engine


def engine_of(spec: str, name: str) -> LoweredEngine:
    engine = copy.copy(converted(spec, name))
    engine._totals = dict(engine._totals)
    return engine


class ByItself(Case):
    """What an engine says when it is given one candidate at a time."""

    def __init__(self, spec: str, name: str) -> None:
        super().__init__(task(name))
        self.spec, self.name = spec, name
        self.engine = functools.cache(self._engine)

    def _engine(self, version: int) -> LoweredEngine:
        engine = engine_of(self.spec, self.name)
        engine.refresh(engine.calibrated(self.record(version)))
        return engine

    def _expected(self, draw: int, version: int | None) -> Answer:
        assert version is not None
        engine, addresses = self.engine(version), self.addresses(draw)
        alone = [split_batch(self.task.source.batch(addresses[i : i + 1])) for i in range(len(addresses))]
        outputs = [engine.outputs(inputs) for inputs, _ in alone]
        score, views = self.task.score, self.task.distill_views
        scores = Scores(
            targets=default_collate([target[0] for _, target in alone]),
            values=score and torch.cat([score(o, target) for o, (_, target) in zip(outputs, alone, strict=True)]),
            log_probabilities=mean_log_probabilities(torch.cat(outputs), views) if views else None,
        )
        return scored(draw, version, scores)


def pool_of(spec: str, name: str, own: Task | None = None, monitored: bool = False) -> InlinePool:
    own = own or task(name)
    monitor = FidelityMonitor(samples(name), own.score, CPU) if monitored and own.score else None
    return InlinePool(replace(scoring_task(own), engine=engine_of(spec, name), monitor=monitor))


OF_ENGINES = (check_versions_interleaved, check_published_again, check_retire, check_trainer_is_left_alone)
"""Checks in which it matters what engine a pool has."""


def test_conformance() -> None:
    by_itself = ByItself("onnxruntime:int8", "images")
    for check in OF_ENGINES:
        check(lambda own: pool_of("onnxruntime:int8", "images", own), by_itself)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "dictionaries", "distillation"])
@pytest.mark.parametrize("spec", ENGINES)
def test_conformance_in_full(spec: str, name: str) -> None:
    by_itself = ByItself(spec, name)
    for check in CHECKS:
        check(lambda own: pool_of(spec, name, own), by_itself)


def test_worker_processes_for_views_are_forked_from_one_with_an_integer_engine() -> None:
    spec = "onnxruntime:int8"
    check_ahead_and_workers(lambda own: pool_of(spec, "images", own), ByItself(spec, "images"))


@pytest.mark.parametrize("spec", ENGINES)
def test_a_record_is_published_with_ranges_and_never_measured_twice(spec: str) -> None:
    first, second = pool_of(spec, "images"), pool_of(spec, "images")
    images, asked = case("images"), samples("images").asked
    asked.clear()
    for version in (0, 100):
        first.publish(images.record(version))
    records = [first.records[version] for version in (0, 100)]
    assert asked == [(0, 16), (100, 16)]
    engine = engine_of(spec, "images")
    assert records[0].ranges.keys() == {site.name for site in engine.graph.sites if site.kind != "weight"}
    assert all(
        torch.equal(r, engine.calibrated(images.record(0)).ranges[name]) for name, r in records[0].ranges.items()
    )
    asked.clear()
    for record in records:
        second.publish(record)
    assert list(second.records.values()) == records
    assert asked == []
    said = []
    for pool in (first, second):
        pool.submit(0, images.addresses(0), 0)
        pool.collect(0)
        asked.clear()
        pool.submit(1, images.addresses(1), 100)
        said.append(pool.collect(1).tree["values"])
        assert asked == [], "a refresh uses the ranges that were published"
        pool.close()
    assert torch.equal(*said)


def said_by_the_model(name: str, version: int) -> Tensor:
    """The probe's scores by the weights of a version, in the model itself."""
    model = copy.deepcopy(task(name).model)
    assert model is not None
    model.load_state_dict(case(name).record(version).tensors)
    monitor = FidelityMonitor(samples(name), scores.loss, CPU)
    with torch.no_grad():
        return monitor.scores(call_model(model.eval(), monitor.inputs))


@pytest.mark.parametrize("spec", ENGINES)
def test_totals_are_those_of_refreshes_and_of_fidelity(spec: str) -> None:
    images = case("images")
    pool = pool_of(spec, "images", monitored=True)
    assert pool.totals() == dict.fromkeys(
        ("refreshes", "recalibrations", "fp32_versions", "deviation_sum", "int8_share_sum"), 0
    )
    for draw, version in enumerate((0, 0, 100)):
        if version not in (0, 0)[:draw]:
            pool.publish(replace(images.record(version), probe_scores=said_by_the_model("images", version)))
        pool.submit(draw, images.addresses(draw), version)
        pool.collect(draw)
    pool.close()
    totals = pool.totals()
    assert (totals["refreshes"], totals["recalibrations"], totals["fp32_versions"]) == (2, 0, 0)
    assert totals["fidelity_count"] == 2, "at every refresh of which the model said something, and only there"
    assert 0.5 < totals["captured_gain_sum"] / 2 <= 1
    assert 0.5 < totals["rank_correlation_sum"] / 2 < 1, "it rounds"
    assert 0 <= totals["deviation_sum"] <= 4


@pytest.mark.parametrize("spec", ENGINES)
def test_a_ruined_record_is_refused_when_it_is_published(spec: str) -> None:
    images = case("images")
    pool = pool_of(spec, "images")
    pool.publish(images.record(0))
    ruined: dict[str, Tensor] = dict(images.record(100).tensors)
    ruined["stem.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"NaN or infinity in stem\.weight"):
        pool.publish(Record(100, ruined))
    with pytest.raises(ValueError, match="got 100 for draw 0, published"):
        pool.submit(0, images.addresses(0), 100)
    pool.submit(0, images.addresses(0), 0)
    assert pool.collect(0).version == 0
    pool.close()
