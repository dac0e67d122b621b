"""The process pool against the suite that every pool must pass."""

import multiprocessing

import pytest

from conformance.pool import TASKS, case, check_pool, check_versions_interleaved
from pool.process_pools import pools

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", TASKS)
def test_conformance(name: str) -> None:
    before = set(multiprocessing.active_children())
    with pools() as make_pool:
        check_pool(make_pool, case(name))
    assert set(multiprocessing.active_children()) <= before, "a closed pool leaves no process behind"


def test_two_workers_share_the_draws() -> None:
    with pools(workers=2) as make_pool:
        check_versions_interleaved(make_pool, case("images"))
        assert len(make_pool(case("images").task).workers()) == 2
