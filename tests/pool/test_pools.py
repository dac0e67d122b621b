"""The dictionary of pools: what each says of itself, and that nothing else has to know their names."""

import pytest

from infer2train.draws.mining import Mining
from infer2train.machine.cores import as_text, available_cores
from infer2train.pool.inline import InlinePool
from infer2train.pool.pool import Pool
from infer2train.pool.pools import POOLS, pool_of


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_says_which_cores_it_keeps_from_the_trainer(name: str) -> None:
    cores = as_text(available_cores()[-1:]) if name in ("process", "ray") else None
    mining = Mining(pool=name, oracle_cores=cores)
    kind = pool_of(mining)
    assert issubclass(kind, Pool)
    oracles, trainers = kind.cores(mining)
    assert {*oracles, *trainers} == set(available_cores())
    assert oracles == (available_cores()[-1:] if name in ("process", "ray") else ())
    assert kind.runs_beside == (name in ("process", "ray"))


def test_a_clusters_cores_are_not_this_machines() -> None:
    mining = Mining(pool="ray", ray_address="auto", oracle_workers=1000)
    assert pool_of(mining).cores(mining) == ((), available_cores())


def test_a_control_that_looks_at_no_candidate_has_no_oracle_to_put_anywhere() -> None:
    assert pool_of(Mining(method="baseline", pool="process")) is InlinePool


@pytest.mark.parametrize("name", POOLS)
def test_workers_that_a_pool_does_not_have_are_refused(name: str) -> None:
    mining = Mining(method="nm-augment", pool=name, oracle_workers=2)
    if name in ("process", "ray"):
        assert pool_of(mining).runs_beside
        return
    with pytest.raises(ValueError, match=f"oracle_workers are processes .*: got 2 with pool='{name}'; pass pool='proc"):
        pool_of(mining)
    assert pool_of(Mining(method="baseline", pool=name, oracle_workers=2)) is InlinePool, "there is no oracle at all"


@pytest.mark.parametrize("name", POOLS)
def test_places_that_a_pool_does_not_have_are_refused(name: str) -> None:
    refused = {
        "oracle_cores": ("0", ("process", "ray"), "oracle_cores are those of the oracle's own processes: got '0'"),
        "ray_address": ("auto", ("ray",), "ray_address names the cluster of the oracle: got 'auto'"),
    }
    for setting, (value, pools, message) in refused.items():
        assert pool_of(Mining(method="baseline", pool=name, **{setting: value})) is InlinePool, "there is no oracle"
        if name in pools:
            assert pool_of(Mining(method="nm-augment", pool=name, **{setting: value})).runs_beside
            continue
        with pytest.raises(ValueError, match=rf"{message} with pool='{name}'; pass pool="):
            pool_of(Mining(method="nm-augment", pool=name, **{setting: value}))


def test_an_unknown_pool_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown pool 'proces': there is .*did you mean 'process'"):
        pool_of(Mining(pool="proces"))
