"""The process pool: oracles in processes of their own, on cores of their own, working ahead of the trainer.

What crosses is addresses, answers and published records; a worker makes its own views of its own copy of the data.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from infer2train.draws.mining import Mining
from infer2train.machine.cores import as_text, shared_out
from infer2train.pool.channel import wait_for
from infer2train.pool.packing import packed
from infer2train.pool.pool import Cores, Pool
from infer2train.pool.seat import Patience
from infer2train.pool.segment import Segment, anonymous_file
from infer2train.pool.supervisor import SupervisedPool
from infer2train.pool.task import Task
from infer2train.pool.transport import Link, Post, Transport
from infer2train.pool.worker_process import GUARD, WorkerProcess, starting_again


class Processes(Transport):
    """Starts processes; records lie in memory that they share.

    Args:
        task: what they do.

    Raises:
        ValueError: it cannot be sent to another process.
    """

    def __init__(self, task: Task) -> None:
        content = packed(task)
        self._task, self._task_bytes = anonymous_file(len(content)), len(content)
        os.pwrite(self._task, content, 0)

    def room(self, tensors: Mapping[str, Tensor]) -> Segment:
        return Segment.like(tensors)

    def carried(self, tensors: Mapping[str, Tensor]) -> Segment:
        return tensors if isinstance(tensors, Segment) else Segment.of(tensors)

    def start(self, post: Post) -> Link:
        return WorkerProcess(post, self._task, self._task_bytes)

    def wait(self, links: Iterable[Link], seconds: float) -> None:
        wait_for([link.channel for link in links if isinstance(link, WorkerProcess)], seconds)

    def close(self) -> None:
        os.close(self._task)


class ProcessPool(SupervisedPool):
    """Does draws in processes of its own.

    Args:
        task: what is done.
        workers: processes.
        cores: that they may run on, shared out among them; empty for those of this process.
        queue_depth: draws that are submitted ahead.
        is_freshest: whether draws are done with the newest weights that a worker has.
        is_newest_first: whether they begin with the draw that was submitted last, where late ones are done without.
        patience: with workers.

    Raises:
        ValueError: the task cannot be sent to another process.
        RuntimeError: the script that was started has no `if __name__ == "__main__"`.
    """

    runs_beside = True
    lost_hint = GUARD

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
    ) -> None:
        if starting_again():
            raise RuntimeError(GUARD)
        threads = max(1, len(cores) // workers) if cores else torch.get_num_threads()
        posts = Post.several(workers, cores, threads=threads, is_freshest=is_freshest, is_newest_first=is_newest_first)
        super().__init__(task, Processes(task), posts, queue_depth=queue_depth, patience=patience)

    @classmethod
    def built(cls, task: Task, mining: Mining, home: torch.device) -> tuple[Pool, tuple[str, ...]]:
        cores, others = cls.cores(mining)
        pool = cls(
            task,
            workers=mining.oracle_workers,
            cores=cores,
            queue_depth=mining.queue_depth,
            is_freshest=mining.staleness == "freshest",
            is_newest_first=mining.when_late == "skip",
        )
        notes = [
            f"the oracle's processes: {mining.oracle_workers}, on cores {as_text(cores)}; the trainer's cores: "
            f"{as_text(others)}"
        ]
        if torch.get_num_threads() > len(others):
            notes.append(
                f"the trainer computes with {torch.get_num_threads()} threads and has {len(others)} cores beside the "
                f"oracle's: torch.set_num_threads({len(others)}) keeps them out of each other's way"
            )
        return pool, tuple(notes)

    @classmethod
    def cores(cls, mining: Mining) -> tuple[Cores, Cores]:
        return shared_out(mining.oracle_cores, mining.oracle_workers)
