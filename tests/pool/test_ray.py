"""The Ray pool on this machine alone: the suite that every pool must pass, the bits of the inline pool, and who dies.

Ray takes seconds to start, and so does an actor: one Ray serves the whole module, and one pool all that can share it.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from conformance.pool import TASKS, case, check_pool
from infer2train.pool.inline import InlinePool
from infer2train.pool.messages import OracleError
from pool.process_pools import bits, score_all, scoring_task
from pool.ray_pools import Pools, Shared, local_ray, pools, ray_pool

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:oracle 0 .*(ended|gave no sign)", "ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:oracle 0. This DataLoader will create"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module", autouse=True)
def a_ray() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def shared(a_ray: None) -> Iterator[Pools]:
    with pools() as made:
        yield made


@pytest.fixture
def pool(shared: Pools) -> Iterator[Shared]:
    pool = shared(case("images").task)
    yield pool
    pool.close()


@pytest.mark.parametrize("name", [n if n == "images" else pytest.param(n, marks=pytest.mark.slow) for n in TASKS])
def test_conformance(name: str, shared: Pools) -> None:
    if name == "images":
        check_pool(shared, case(name))
        return
    with pools() as make_pool:
        check_pool(make_pool, case(name))


def test_what_is_said_is_what_the_inline_pool_says_bit_for_bit(pool: Shared) -> None:
    images = case("images")
    inline = InlinePool(scoring_task(images.task))
    assert score_all(pool, images) == score_all(inline, images)
    inline.close()


def test_data_that_the_machine_has_is_named_and_another_data_set_is_refused(a_ray: None) -> None:
    images = case("images")
    inline = InlinePool(scoring_task(images.task))
    named = ray_pool(images.task, data="pool.named_images:images")
    assert score_all(named, images) == score_all(inline, images)
    named.end()
    inline.close()
    other = ray_pool(images.task, data="pool.named_images:darker")
    other.publish(images.record(0))
    other.submit(0, images.addresses(0), 0)
    differ = "must compute as .*got data [0-9a-f]+ here, [0-9a-f]+ there; .*have pool.named_images:darker give every"
    with pytest.raises(OracleError, match=differ):
        other.collect(0)
    other.end()


def test_an_actor_that_is_killed_is_replaced_and_nothing_else_changes(pool: Shared) -> None:
    images = case("images")
    undisturbed = score_all(pool, images)
    pool.close()
    (pid,) = pool.workers().values()
    for version in images.versions:
        pool.publish(images.record(version))
    for draw in range(6):
        pool.submit(draw, images.addresses(draw), images.versions[-1] if draw % 2 else 0)
    os.kill(pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=r"oracle 0 \(on .*\) ended .*; it is started again"):
        assert [bits(pool.collect(draw)) for draw in range(6)] == undisturbed[-6:]
    assert pool.totals()["worker_restarts"] == 1
    assert pool.workers()["oracle 0"] != pid
    assert not Path(f"/proc/{pid}").exists()


def test_nothing_listens_beyond_loopback(pool: Shared) -> None:
    assert pool.workers()
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    names = {process.name() for process in ours}
    assert {"raylet", "gcs_server"} <= names, "Ray's processes are seen"
    found = [c.laddr.ip for p in ours for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert found
    assert {ip.removeprefix("::ffff:") for ip in found} == {"127.0.0.1"}


def test_a_first_actor_that_cannot_unpack_the_task_says_why(a_ray: None) -> None:
    images = case("images")
    with pools() as make_pool:
        pool = make_pool(replace(images.task, score=Unreadable()))
        pool.publish(images.record(0))
        pool.submit(0, images.addresses(0), 0)
        with pytest.raises(OracleError, match="oracle 0 failed with ModuleNotFoundError: no such module here"):
            pool.collect(0)


class Unreadable:
    """A score function that only its maker can read."""

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs[:, 0]

    def __setstate__(self, state: object) -> None:
        raise ModuleNotFoundError("no such module here")

    def __getstate__(self) -> dict[str, float]:
        return {"kind": 1.0}
