"""The Ray pool: oracles in actors of a Ray cluster, on any of its machines, working ahead of the trainer.

What crosses is addresses, answers and published records; an actor makes its own views of its own copy of the data. The
supervisor is the one of processes: Ray only finds places, starts actors there and carries what is said.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from infer2train.draws.mining import Mining
from infer2train.machine.cores import as_text, available_cores, shared_out
from infer2train.pool.packing import packed_for_cluster
from infer2train.pool.pool import Cores, Pool
from infer2train.pool.ray_cluster import ORACLE, join
from infer2train.pool.ray_link import RayLink, Stored
from infer2train.pool.seat import Patience
from infer2train.pool.supervisor import SupervisedPool
from infer2train.pool.task import Task
from infer2train.pool.transport import Link, Post, Transport


class Actors(Transport):
    """Starts actors; task and records lie in the cluster's object store, from which a node fetches each once.

    Args:
        task: what they do.
        address: of the cluster's head; None for a Ray of this machine alone.
        cores: that such a one runs on.
        data: `module:function` that gives each machine its own copy of the data set; None to have it sent.

    Raises:
        ValueError: the task cannot be sent to another process, or Ray is not installed.
    """

    def __init__(self, task: Task, address: str | None, cores: Sequence[int], data: str | None) -> None:
        self._leave = join(address, cores=cores)
        try:
            import ray

            self._task = [ray.put(packed_for_cluster(task, data))]
        except BaseException:
            self._leave()
            raise
        on_gpu = task.engine is not None and task.engine.device.type == "cuda"
        self._needs = {"GPU": 1.0} if on_gpu else {ORACLE: 1.0}
        self._links: list[RayLink] = []
        self._has_other_nodes, self._avoided = address is not None, set[str]()
        self._something_told = threading.Event()

    def carried(self, tensors: Mapping[str, Tensor]) -> Stored:
        return tensors if isinstance(tensors, Stored) else Stored(tensors)

    def start(self, post: Post) -> Link:
        self._links = [link for link in self._links if link.listener.is_alive()]
        self._links.append(RayLink(post, self._task, self._needs, self._something_told, avoided=self._avoided))
        return self._links[-1]

    def avoid(self, link: Link) -> bool:
        assert isinstance(link, RayLink)
        if self._has_other_nodes:
            self._avoided.add(link.node_id)
        return self._has_other_nodes

    def wait(self, links: Iterable[Link], seconds: float) -> None:
        if seconds > 0:
            self._something_told.wait(seconds)
        self._something_told.clear()

    def close(self) -> None:
        for link in self._links:
            link.listener.join()
        self._task.clear()
        self._leave()


class RayPool(SupervisedPool):
    """Does draws in actors of a Ray cluster.

    Args:
        task: what is done.
        workers: actors.
        cores: that they run on in a Ray of this machine alone, shared out among them; empty for one of those that are
            free, for each, as on the machines of a cluster.
        queue_depth: draws that are submitted ahead.
        is_freshest: whether draws are done with the newest weights that a worker has.
        is_newest_first: whether they begin with the draw that was submitted last, where late ones are done without.
        patience: with workers.
        address: of the cluster's head; None for a Ray of this machine alone.
        data: `module:function` that gives each machine its own copy of the data set; None to have it sent.

    Raises:
        ValueError: the task cannot be sent to another process, or Ray is not installed.
    """

    runs_beside = True
    place_hint = (
        "Start a machine for it, as with ray start --address=HEAD:6379 --resources='{\"oracle\": 1}', or see with "
        "ray status what there is."
    )

    def __init__(
        self,
        task: Task,
        *,
        workers: int = 1,
        cores: Sequence[int] = (),
        queue_depth: int = 4,
        is_freshest: bool = False,
        is_newest_first: bool = False,
        patience: Patience | None = None,
        address: str | None = None,
        data: str | None = None,
    ) -> None:
        if data is not None:
            self.alike_hint = f"give both the same environment, and have {data} give every machine the same data set"
        threads = max(1, len(cores) // workers)
        posts = Post.several(workers, cores, threads=threads, is_freshest=is_freshest, is_newest_first=is_newest_first)
        super().__init__(task, Actors(task, address, cores, data), posts, queue_depth=queue_depth, patience=patience)

    @classmethod
    def built(cls, task: Task, mining: Mining, home: torch.device) -> tuple[Pool, tuple[str, ...]]:
        cores, _ = cls.cores(mining)
        pool = cls(
            task,
            workers=mining.oracle_workers,
            cores=cores,
            queue_depth=mining.queue_depth,
            is_freshest=mining.staleness == "freshest",
            is_newest_first=mining.when_late == "skip",
            address=mining.ray_address,
            data=mining.ray_data,
        )
        where = f"the cluster at {mining.ray_address}" if mining.ray_address else f"cores {as_text(cores)}, by Ray"
        return pool, (f"the oracle's actors: {mining.oracle_workers}, on {where}",)

    @classmethod
    def cores(cls, mining: Mining) -> tuple[Cores, Cores]:
        if mining.ray_address:
            return (), available_cores()  # those of the cluster's machines are not this one's
        return shared_out(mining.oracle_cores, mining.oracle_workers)
