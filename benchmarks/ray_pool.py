"""The Ray pool: what it costs beside the process pool, what crosses for a draw, and that nothing is lost when all die.

    python benchmarks/ray_pool.py --case ratio                 # one local Ray worker ÷ one process, step times
    python benchmarks/ray_pool.py --case soak --seconds 300    # a worker killed every 20 s, then a node
    python benchmarks/ray_pool.py --case records               # how often a version crosses, to two nodes

`ratio` trains ResNet-44 on random CIFAR-shaped pixels by nm-augment, γ = 10, in both ways, in short turns, since a
machine's speed drifts: seconds a step by the wall, and by the CPU time of all processes together (trainer, oracle,
Ray's own), which other work on the machine does not lengthen. The bound is 1.05. It counts what is said for a draw,
both ways, and what is put into the object store for a version.

`soak` trains a small network in a cluster of a head and two nodes of this machine, and then the same steps inline: the
weights must be the same, bit for bit.

`records` trains in a cluster of a head and two nodes with two oracles each. It counts what `ray.put` was called for,
and by Ray's own statistics how many objects, of how many bytes, came into the object store of each node: what a node
fetches is one more object there.
"""

import argparse
import os
import pickle
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import infer2train
from infer2train.machine.cores import on_cores, parse_cores
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.pool import ray_desk, ray_link
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews

BOUND, MOST_BYTES = 1.05, 64 << 10
KILL_SECONDS = 20.0
STORE_BYTES = 200 << 20


class Run:
    """A training of a network by nm-augment."""

    def __init__(self, network: nn.Module, size: int, options: argparse.Namespace, **settings: Any) -> None:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (6_400, size, size, 3), dtype=np.uint8)
        source = ImageViews(pixels, generator.integers(0, 10, 6_400), PadCropFlip(4))
        self.network = Pixels(network, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.network.to(memory_format=torch.channels_last)
        self.optimizer = SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        torch.manual_seed(0)
        base: DataLoader[Any] = DataLoader(source, batch_size=options.batch_size, shuffle=True, drop_last=True)
        self.loader = infer2train.mine(
            base,
            self.network,
            self.optimizer,
            gamma=options.gamma,
            oracle=options.oracle,
            update_every=options.update_every,
            oracle_cores=options.oracle_cores,
            **settings,
        )
        self._batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def steps(self, count: int) -> float:
        """Seconds a step."""
        started = perf_counter()
        for images, targets in islice(self._batches, count):
            F.cross_entropy(self.network(images), targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (perf_counter() - started) / count


def cpu_seconds() -> float:
    """Of this process and all that it has started, which all live on."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(time.user + time.system for time in times)


class Counted:
    """Counts what crosses: orders, replies that tell something, records."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self._watch(ray_link.RayLink, "tell", "orders", lambda link, order: order)
        self._watch(ray_link.RayLink, "_note", "replies", lambda link, reply, heard: reply)
        self._watch(ray_link, "kept", "records", lambda tensors: dict(tensors))

    def _watch(self, owner: Any, name: str, what: str, part: Any) -> None:
        call = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            said = part(*arguments)
            if isinstance(said, ray_desk.Reply) and not said.news:
                return call(*arguments)  # a sign of life
            if not hasattr(said, "tensors"):  # of a record only its reference crosses here
                self.bytes[what] += len(pickle.dumps(said))
                self.times[what] += 1
            return call(*arguments)

        setattr(owner, name, counting)


def loopback_bytes() -> int:
    """All that this machine has sent to itself, by whomever."""
    with Path("/proc/net/dev").open(encoding="utf-8") as file:
        line = next(line for line in file if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


def ratio(options: argparse.Namespace) -> bool:
    """Step times in turns, and what crosses."""
    counted = Counted()

    def made(pool: str) -> Run:
        network = build_model(options.model, num_classes=10, in_channels=3, seed=0)
        return Run(network, 32, options, pool=pool)

    with on_cores(parse_cores(options.trainer_cores)):
        runs = {pool: made(pool) for pool in ("process", "ray")}
        for run in runs.values():
            run.steps(options.update_every)
        wall: dict[str, list[float]] = {pool: [] for pool in runs}
        cpu: dict[str, list[float]] = {pool: [] for pool in runs}
        counted.bytes.clear()
        counted.times.clear()
        draws, crossed = 0, 0
        for _ in range(options.rounds):
            for pool, run in runs.items():
                before, sent = cpu_seconds(), loopback_bytes()
                wall[pool].append(run.steps(options.update_every))
                cpu[pool].append((cpu_seconds() - before) / options.update_every)
                if pool == "ray":
                    crossed, draws = crossed + loopback_bytes() - sent, draws + options.update_every
            ratios = [f"{kind['ray'][-1] / kind['process'][-1]:.3f}" for kind in (wall, cpu)]
            print(f"wall {wall['process'][-1]:.2f} s and {wall['ray'][-1]:.2f} s; ratios {ratios}", flush=True)
        for run in runs.values():
            run.loader.close()
    found = {
        name: statistics.median(r / p for r, p in zip(kind["ray"], kind["process"], strict=True))
        for name, kind in (("wall", wall), ("CPU", cpu))
    }
    said = (counted.bytes["orders"] + counted.bytes["replies"]) / draws
    print(f"ray ÷ process, medians of {options.rounds} rounds: wall {found['wall']:.3f}, CPU {found['CPU']:.3f}")
    print(f"said for a draw, both ways: {said / 1024:.1f} KB; on the loopback in all {crossed / draws / 1024:.1f} KB")
    print(f"records: {counted.times['records']}, each {counted.bytes['records'] / counted.times['records']:.0f} bytes")
    return found["wall"] <= BOUND and said <= MOST_BYTES


def soak(options: argparse.Namespace) -> bool:
    """A training among deaths, and the same one inline."""
    import ray

    cluster, nodes = small_cluster(1)

    def small() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10)
        )

    run = Run(small(), 16, options, pool="ray", ray_address=cluster.address, oracle_workers=2)
    started = killed = perf_counter()
    steps, kills, is_node_killed = 0, 0, False
    while perf_counter() - started < options.seconds:
        run.steps(10)
        steps += 10
        workers = list(run.loader._pool.workers().values())
        if workers and perf_counter() - killed > KILL_SECONDS:
            os.kill(workers[kills % len(workers)], signal.SIGKILL)
            killed, kills = perf_counter(), kills + 1
        if not is_node_killed and perf_counter() - started > options.seconds - KILL_SECONDS:
            cluster.remove_node(nodes[0], allow_graceful=False)
            is_node_killed = True
    restarts = run.loader._pool.totals().get("worker_restarts", 0)
    run.loader.close()
    ray.shutdown()
    cluster.shutdown()
    inline = Run(small(), 16, options)
    inline.steps(steps)
    inline.loader.close()
    pairs = zip(run.network.state_dict().values(), inline.network.state_dict().values(), strict=True)
    is_same = all(torch.equal(ours, theirs) for ours, theirs in pairs)
    print(
        f"{steps} draws in {options.seconds:.0f} s, {kills} workers killed, then a node; restarts {restarts:.0f}; "
        f"weights identical to inline: {is_same}"
    )
    return is_same


def small_cluster(places: int) -> tuple[Any, list[Any]]:
    """A cluster of a head and two nodes of this machine, with so many places for oracles each."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    settings = {"num_cpus": 1, "resources": {"oracle": places}, "object_store_memory": STORE_BYTES}
    return cluster, [cluster.add_node(**settings) for _ in range(2)]


def stored(cluster: Any) -> list[tuple[int, int]]:
    """Objects and bytes that have ever come into the store of each node, the head's first."""
    from ray._private.internal_api import node_stats

    found = []
    for node in (cluster.head_node, *sorted(cluster.worker_nodes, key=lambda node: node.unique_id)):
        stats = node_stats(node.node_ip_address, node.node_manager_port, include_memory_info=False).store_stats
        found.append((stats.cumulative_created_objects, stats.cumulative_created_bytes))
    return found


def records(options: argparse.Namespace) -> bool:
    """How often a version is put, and how often it comes to a node."""
    import ray

    counted = Counted()
    cluster, nodes = small_cluster(2)
    network = build_model(options.model, num_classes=10, in_channels=3, seed=0)
    run = Run(network, 32, options, pool="ray", ray_address=cluster.address, oracle_workers=2 * len(nodes))
    all_idle = ["idle"] * (2 * len(nodes))
    while list(run.loader._pool.phases().values()) != all_idle:  # the first version comes with the first draw
        run.loader._pool.is_ready(0)
        sleep(0.05)
    counted.bytes.clear()
    counted.times.clear()
    before = stored(cluster)
    run.steps(options.rounds * options.update_every)
    while list(run.loader._pool.phases().values()) != all_idle:
        run.loader._pool.is_ready(0)
        sleep(0.05)
    came = [(n - m, there - here) for (m, here), (n, there) in zip(before, stored(cluster), strict=True)]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in run.network.state_dict().values())
    run.loader.close()
    ray.shutdown()
    cluster.shutdown()
    versions = counted.times["records"]
    print(f"{options.model}: weights and statistics of a version {weights} bytes; versions put: {versions}")
    for name, (objects, size) in zip(("the trainer's node", "oracles' node 1", "oracles' node 2"), came, strict=True):
        each = f"{objects / versions:.2f} objects and {size / versions:.0f} bytes a version"
        print(f"{name}: {objects} objects, {size} bytes; {each}, {size / versions / weights:.4f} of its size")
    return versions == options.rounds and all(objects == versions for objects, _ in came)


CASES = {"ratio": ratio, "soak": soak, "records": records}


def main() -> None:
    """One case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="ratio")
    parser.add_argument("--model", default="resnet44")
    parser.add_argument("--oracle", default=None, help="engine; int8 for ratio, else torch:fp32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--gamma", type=int, default=10)
    parser.add_argument("--update-every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trainer-cores", default="0")
    parser.add_argument("--oracle-cores", default=None, help="default: 1 for ratio")
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    is_ratio = options.case == "ratio"
    options.oracle = options.oracle or ("int8" if is_ratio else "torch:fp32")
    options.oracle_cores = options.oracle_cores or ("1" if is_ratio else None)
    torch.set_num_threads(1)
    print(f"{cpu_name()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}", flush=True)
    sys.exit(0 if CASES[options.case](options) else 1)


if __name__ == "__main__":
    main()
