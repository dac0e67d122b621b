"""One worker's process as the trainer's has it: started on its cores, talked to, watched, ended."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.reduction import DupFd
from typing import Any

import torch

from infer2train.machine.cores import on_cores
from infer2train.pool.channel import channel_pair
from infer2train.pool.messages import News, Order
from infer2train.pool.process_desk import Setting, work
from infer2train.pool.pulse import Pulse
from infer2train.pool.transport import Link, LinkClosedError, Post

GUARD = (
    "pool='process' starts Python processes that import your script: put what the script does under "
    "`if __name__ == '__main__':`"
)
"""What a script must do that starts processes."""


class WorkerProcess(Link):
    """A spawned process and the ends of what connects it.

    Args:
        post: the worker's.
        task: descriptor of the packed task.
        task_bytes: its size.
    """

    def __init__(self, post: Post, task: int, task_bytes: int) -> None:
        self.channel, end = channel_pair()
        self._pulse = Pulse()
        setting = Setting(
            post=post, matmul_precision=torch.get_float32_matmul_precision(), trainer=os.getpid(), task_bytes=task_bytes
        )
        context = multiprocessing.get_context("spawn")
        # DupFd works only while a process is being started, which is when these are pickled.
        arguments = (end, _Descriptor(task), _Descriptor(self._pulse.descriptor), setting)
        self._process = context.Process(target=work, args=arguments, name=f"infer2train {post.lane}")
        with on_cores(post.cores), _without_interrupts():
            self._process.start()
        end.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def beats(self) -> int:
        return self._pulse.beats

    @property
    def phase(self) -> str:
        return self._pulse.phase

    def tell(self, order: Order) -> None:
        self.channel.send(order)

    def heard(self) -> list[News]:
        with suppress(LinkClosedError):  # it may have said why it went
            self.channel.flush()
        return self.channel.receive()

    def how_it_ended(self, *, patience_seconds: float = 0.0) -> str | None:
        if patience_seconds:
            self._process.join(patience_seconds)
        code = self._process.exitcode
        if code is None:
            return None
        if code >= 0:
            return f"ended with exit code {code}"
        killed = " (the system kills so where memory runs out)" if code == -9 else ""
        return f"was killed by signal {-code}{killed}"

    def ended_by_itself(self) -> bool:
        return self._process.exitcode is not None and self._process.exitcode >= 0

    def end(self, *, patience_seconds: float = 0.0) -> None:
        if patience_seconds:
            self._process.join(patience_seconds)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.channel.close()
        self._pulse.close()


class _Descriptor:
    """A file's descriptor among a process's arguments."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (DupFd(self._descriptor),)


def _same(sent: object) -> object:
    return sent


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Within, Ctrl-C waits; a process that is started begins so, until it says itself what Ctrl-C means to it."""
    resource_tracker.ensure_running()  # it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def starting_again() -> bool:
    """Whether this process is one that is being started, and is only importing the script that it was started from."""
    return bool(getattr(multiprocessing.process.current_process(), "_inheriting", False))
