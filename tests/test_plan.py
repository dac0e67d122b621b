"""The plan of a loader: which draws are mined, and what makes two plans different."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest

from infer2train.addresses import Addresses
from infer2train.methods import METHODS, Ramp
from infer2train.plan import Draw, MiningPlan, plan_fields
from infer2train.versions import VersionRule

PLAN = MiningPlan(
    method=METHODS["nm-augment"],
    score="loss",
    oracle="torch:fp32",
    quantization="default",
    oracle_chunk=32,
    gamma=10,
    rule=VersionRule(update_every=100),
    mine_every=1,
    balance="stratified",
    distill_weight=1e-5,
    accumulation_steps=1,
    epochs=90,
    seed=0,
)


@pytest.mark.parametrize("mine_every", [1, 2, 3])
def test_draws_of_every_so_many_steps_are_mined(mine_every: int) -> None:
    plan = replace(PLAN, mine_every=mine_every)
    assert [step for step in range(12) if plan.is_mined(step)] == list(range(0, 12, mine_every))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_mined_where_no_candidate_is_looked_at(name: str) -> None:
    asks = name not in ("baseline", "batch-augment")
    assert replace(PLAN, method=METHODS[name]).is_mined(0) == asks


CHANGES = {
    "method": METHODS["nm-sample"],
    "score": "entropy",
    "oracle": "torch:bf16",
    "quantization": "paper",
    "oracle_chunk": 64,
    "gamma": 9,
    "rule": VersionRule(update_every=50),
    "mine_every": 2,
    "balance": "uniform",
    "distill_weight": 1e-4,
    "accumulation_steps": 2,
    "epochs": None,
    "seed": 1,
    "staleness": "freshest",
    "when_late": "skip",
    "on_oracle_loss": "continue",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MiningPlan)])
def test_every_setting_tells_two_plans_apart(field: str) -> None:
    """A new field without an entry in `plan_fields` would let a run resume under other settings."""
    assert plan_fields(replace(PLAN, **{field: CHANGES[field]})) != plan_fields(PLAN)


@pytest.mark.parametrize(
    "method",
    [
        replace(PLAN.method, pick="quantile"),
        replace(PLAN.method, schedule=Ramp(rate=0.1)),
        replace(PLAN.method, schedule=Ramp(start=0.1, stop=0.1)),
        replace(PLAN.method, schedule=Ramp(stop=0.1)),
        replace(PLAN.method, candidates="samples"),
        replace(PLAN.method, loss="distillation"),
    ],
)
def test_every_choice_of_a_method_tells_two_plans_apart(method) -> None:
    assert plan_fields(replace(PLAN, method=method)) != plan_fields(PLAN)


def test_a_longer_delay_is_another_plan() -> None:
    assert plan_fields(replace(PLAN, rule=VersionRule(update_every=100, delay_steps=1))) != plan_fields(PLAN)


def test_fields_survive_json() -> None:
    fields = plan_fields(replace(PLAN, method=replace(PLAN.method, schedule=Ramp(rate=0.1)), seed=(1 << 63) - 1))
    assert json.loads(json.dumps(fields)) == fields


@pytest.mark.parametrize(("version", "lag"), [(100, 50), (150, 0), (None, None)])
def test_lag_is_the_step_minus_the_version(version: int | None, lag: int | None) -> None:
    nothing = Addresses(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    draw = Draw(
        draw=301,
        epoch=0,
        step=150,
        version=version,
        addresses=nothing,
        candidates=nothing,
        scores=None,
        chosen=None,
        mined=None,
        log_probabilities=None,
    )
    assert draw.lag == lag
