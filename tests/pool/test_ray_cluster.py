"""The Ray pool in a cluster of several real nodes on this machine: they die, stop, come late, are others, lose calls.

Whatever happens, what is said is what undisturbed work says, bit for bit.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.pool import CHUNK, VERSIONS, case
from infer2train.pool.inline import InlinePool
from infer2train.pool.messages import OracleError
from infer2train.pool.pool import OracleLostError
from infer2train.pool.seat import Patience
from infer2train.pool.task import Answer
from pool.process_pools import bits, score_all, scoring_task
from pool.ray_pools import STORE_BYTES, Shared, ray_pool, require_ray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:oracle . .*(ended|gave no sign|it is given up)"),
    pytest.mark.timeout(600),
]
DRAWS = 6
RPC_FAILURE = (
    '{"CoreWorkerService.grpc_client.PushTask": {"num_failures": 60, "req_failure_prob": 20, "resp_failure_prob": 20}}'
)
PATIENCE = Patience(silent_seconds=15.0)
"""Of a machine that other tests keep busy."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that has no place for an oracle, where the trainer is."""
    require_ray()
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    yield made
    ray.shutdown()  # of a pool that a failed test has left
    made.shutdown()


def with_places(cluster: Any, **settings: Any) -> Any:
    try:
        return cluster.add_node(num_cpus=1, resources={"oracle": 1}, object_store_memory=STORE_BYTES, **settings)
    except Exception as error:
        if "timed out during startup" in str(error):
            pytest.skip("this machine is too busy to start a node within the 30 s that Ray gives it")
        raise


@pytest.fixture(scope="module")
def undisturbed() -> list[bytes]:
    pool = InlinePool(scoring_task(case("images").task))
    said = score_all(pool, case("images"), DRAWS)
    pool.close()
    return said


def joined(cluster: Any, workers: int, **settings: Any) -> Shared:
    return ray_pool(case("images").task, workers=workers, address=cluster.address, patience=PATIENCE, **settings)


def submit_all(pool: Shared) -> None:
    """Publish all versions, and submit the draws of `score_all`'s last."""
    images = case("images")
    for version in images.versions:
        pool.publish(images.record(version))
    for draw in range(DRAWS):
        pool.submit(draw, images.addresses(draw), images.versions[-1] if draw % 2 else images.versions[0])


def collected(pool: Shared) -> list[bytes]:
    return [bits(pool.collect(draw)) for draw in range(DRAWS)]


def until(condition: Callable[[], bool], pool: Shared, seconds: float = 120) -> None:
    """Wait until something is so, while the pool looks at its workers."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        pool.is_ready(0)
        time.sleep(0.05)


def test_nodes_die_stop_and_come(cluster: Any, undisturbed: list[bytes]) -> None:
    first, _ = with_places(cluster), with_places(cluster)
    pool = joined(cluster, 3)
    until(lambda: len(pool.workers()) == 2, pool)
    assert score_all(pool, case("images"), DRAWS) == undisturbed

    # Stopped: its draws are done by the other one once it has been silent for long enough.
    stopped = pool.workers()["oracle 0"] if "oracle 0" in pool.workers() else pool.workers()["oracle 1"]
    os.kill(stopped, signal.SIGSTOP)
    submit_all(pool)
    assert collected(pool) == undisturbed[-DRAWS:]
    assert pool.totals()["worker_restarts"] == 1
    until(lambda: not Path(f"/proc/{stopped}").exists(), pool)

    # A whole node, killed with draws under way; nobody is there to say so but the cluster.
    until(lambda: len(pool.workers()) == 2, pool)
    submit_all(pool)
    cluster.remove_node(first, allow_graceful=False)
    assert collected(pool) == undisturbed[-DRAWS:]
    until(lambda: len(pool.workers()) == 1, pool)  # the death may have been noticed only after the answers

    # One that comes while the pool works gets an oracle, and the oracle gets draws.
    before = set(pool.workers().values())
    with_places(cluster)
    until(lambda: len(pool.workers()) == 2, pool)
    (new,) = [lane for lane, pid in pool.workers().items() if pid not in before]
    submit_all(pool)
    assert collected(pool) == undisturbed[-DRAWS:]
    assert any(span.lane == new and span.name == "forward" for span in pool.timeline.recent)

    # With no place at all left, nothing is lost either: what is submitted is done when there is one again.
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    submit_all(pool)
    until(lambda: not pool.workers(), pool)
    with_places(cluster)
    assert collected(pool) == undisturbed[-DRAWS:]
    pool.end()


def test_a_cluster_without_a_place_is_the_oracle_lost(cluster: Any) -> None:
    pool = ray_pool(case("images").task, workers=1, address=cluster.address, patience=Patience(starting_seconds=2.0))
    submit_all(pool)
    with pytest.raises(OracleLostError, match=r"must have a place to run: got none within 2 s \(oracle 0 \(waits for"):
        pool.collect(0)
    pool.end()


def fake_version(folder: Path) -> dict[str, str]:
    """The environment of a node that has another version of a package that it computes with."""
    told = folder / "onnxruntime-0.0.1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 0.0.1\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_node_with_other_packages_is_refused_by_name(cluster: Any, undisturbed: list[bytes], tmp_path: Path) -> None:
    environment = fake_version(tmp_path)
    other = with_places(cluster, env_vars=environment)
    alone = joined(cluster, 1)
    submit_all(alone)
    differ = r"oracle 0 \(on [\d.]+\) must compute as the trainer's process does: got onnxruntime \S+ here, 0.0.1 there"
    with pytest.raises(OracleError, match=differ):
        alone.collect(0)
    alone.end()
    cluster.remove_node(other)

    # Where others do, it is left out and the run goes on.
    with_places(cluster)
    pool = joined(cluster, 2)
    until(lambda: "idle" in pool.phases().values(), pool)
    with_places(cluster, env_vars=environment)
    with pytest.warns(RuntimeWarning, match="onnxruntime .* here, 0.0.1 there"):
        until(lambda: any("computes otherwise" in span.details.get("why", "") for span in pool.timeline.recent), pool)
    submit_all(pool)
    assert collected(pool) == undisturbed[-DRAWS:]

    # Its seat goes to no such node again, however free, and comes back with one that is right.
    assert len(pool.workers()) == 1
    assert any("waits for" in seat.name for seat in pool._seats)
    for number in range(4):
        pool.aside(number, case("images").addresses(number)[:CHUNK], VERSIONS[-1])
    asides: list[Answer] = []
    while len(asides) < 4:
        asides += pool.answered_asides()
        time.sleep(0.05)
    with_places(cluster)
    until(lambda: len(pool.workers()) == 2, pool)
    until(lambda: list(pool.phases().values()) == ["idle", "idle"], pool)
    submit_all(pool)
    assert collected(pool) == undisturbed[-DRAWS:]
    assert pool.totals()["worker_restarts"] == 1
    pool.end()


LOSING = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from conformance.pool import case
from infer2train.pool.inline import InlinePool
from pool.process_pools import score_all, scoring_task
from pool.ray_pools import ray_pool
images = case("images")
inline = InlinePool(scoring_task(images.task))
pool = ray_pool(images.task)
wanted = score_all(inline, images)
for _ in range(10):
    assert score_all(pool, images) == wanted
    pool.close()
print("restarts", pool.totals().get("worker_restarts", 0))
pool.end()
"""


def test_calls_that_are_lost_on_their_way_lose_no_order_and_no_answer() -> None:
    """By Ray's own injection of faults: requests and replies of calls to actors fail, each with this probability."""
    require_ray()
    lossy = os.environ | {"RAY_testing_rpc_failure": RPC_FAILURE}
    script = LOSING.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400, env=lossy)
    assert done.returncode == 0, done.stderr
    assert "restarts 0" in done.stdout
