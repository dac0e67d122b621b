"""The process pool against the suite that every pool must pass."""

import multiprocessing

import pytest

from conformance.pool import TASKS, case, check_pool, check_versions_interleaved
from pool.process_pools import pools, process_pool

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", [n if n == "images" else pytest.param(n, marks=pytest.mark.slow) for n in TASKS])
def test_conformance(name: str) -> None:
    before = set(multiprocessing.active_children())
    with pools() as make_pool:
        check_pool(make_pool, case(name))
    assert set(multiprocessing.active_children()) <= before, "a closed pool leaves no process behind"


def test_a_worker_without_an_engine_outlives_what_is_retired() -> None:
    pool = process_pool(case("labels only").task)
    for draw in range(2):
        pool.retire(1)
        pool.submit(draw, case("labels only").addresses(draw), None)
        pool.collect(draw)
    assert pool.totals().get("worker_restarts", 0.0) == 0
    pool.close()


def test_two_workers_share_the_draws() -> None:
    with pools(workers=2) as make_pool:
        check_versions_interleaved(make_pool, case("images"))
        assert len(make_pool(case("images").task).workers()) == 2
