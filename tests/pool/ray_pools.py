"""Ray for tests: one of this machine alone for a whole module, since it takes seconds to start; and pools in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from conformance.pool import Task
from infer2train.pool.ray_cluster import join
from infer2train.pool.ray_pool import RayPool
from pool.process_pools import scoring_task

STORE_BYTES = 200 << 20
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # other tests' memory is none of its business
    # Of a node's own processes: a busy machine is no broken one.
    "RAY_raylet_start_wait_time_s": "150",
    "RAY_agent_register_timeout_ms": "150000",
    "RAY_health_check_timeout_ms": "60000",
}


def require_ray() -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'infer2train[ray]'")
    os.environ |= SETTINGS


@contextmanager
def local_ray() -> Iterator[None]:
    """Within, the Ray that a first pool would start, and the last one end."""
    require_ray()
    leave = join(None)
    try:
        yield
    finally:
        leave()


class Shared(RayPool):
    """One started pool for one check after another: a check's `close` leaves it as it was when it was new."""

    def close(self) -> None:
        self.forget()
        self.retire(1 << 60)

    def end(self) -> None:
        super().close()


class Pools:
    """Pools by the number of processes that make their views."""

    def __init__(self) -> None:
        self._pools: dict[int, Shared] = {}

    def __call__(self, task: Task) -> Shared:
        if task.num_workers not in self._pools:
            self._pools[task.num_workers] = ray_pool(task)
        return self._pools[task.num_workers]

    def end(self) -> None:
        for pool in self._pools.values():
            pool.end()


@contextmanager
def pools() -> Iterator[Pools]:
    """Within, a way to build pools; after, none of their actors is left."""
    made = Pools()
    try:
        yield made
    finally:
        made.end()


def ray_pool(task: Task, **settings: Any) -> Shared:
    """A started pool."""
    return Shared(scoring_task(task), **settings)
