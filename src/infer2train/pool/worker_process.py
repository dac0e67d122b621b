"""One oracle worker as the trainer's process sees it: started on its cores, talked to, watched, ended."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.reduction import DupFd
from typing import Any

import torch

from infer2train.machine.cores import on_cores
from infer2train.pool.channel import channel_pair
from infer2train.pool.pulse import Pulse
from infer2train.pool.worker import Setting, work

JOIN_SECONDS = 5.0
"""Given to a worker that was asked to stop, before it is ended."""
LONGEST_LOOK_SECONDS = 1.0
"""Longer pauses between two looks at a worker count as this much of its silence."""
GUARD = (
    "pool='process' starts Python processes that import your script: put what the script does under "
    "`if __name__ == '__main__':`"
)
"""What a script must do that starts processes."""


class WorkerProcess:
    """A spawned process and the ends of what connects it.

    Args:
        lane: its name on the timeline, such as `oracle 0`.
        task: descriptor of the packed task.
        task_bytes: its size.
        cores: that it may run on; empty for those of this process.
        threads: of its arithmetic.
        is_freshest: whether it scores by the newest weights that it has.
        is_newest_first: whether it begins with the draw that was submitted last.
    """

    def __init__(
        self,
        lane: str,
        task: int,
        task_bytes: int,
        *,
        cores: Sequence[int],
        threads: int,
        is_freshest: bool,
        is_newest_first: bool,
    ) -> None:
        self.lane = lane
        self.channel, end = channel_pair()
        self.pulse = Pulse()
        setting = Setting(
            lane=lane,
            threads=threads,
            matmul_precision=torch.get_float32_matmul_precision(),
            is_freshest=is_freshest,
            is_newest_first=is_newest_first,
            trainer=os.getpid(),
        )
        context = multiprocessing.get_context("spawn")
        # DupFd works only while a process is being started, which is when these are pickled.
        arguments = (end, _Descriptor(task), task_bytes, _Descriptor(self.pulse.descriptor), setting)
        self._process = context.Process(target=work, args=arguments, name=f"infer2train {lane}")
        with on_cores(cores), _without_interrupts():
            self._process.start()
        end.close()
        self.started = time.monotonic()
        self.is_ready, self.is_hung_up = False, False
        self.refused: str | None = None
        """Why nothing that it says is taken any more."""
        self.ready_since = self.answered = self.started
        self._beats, self._looked, self._silent_seconds = 0, time.monotonic(), 0.0

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def ready_seconds(self) -> float:
        """How long it has been able to work."""
        return time.monotonic() - self.ready_since if self.is_ready else 0.0

    def silent_seconds(self) -> float:
        """How long no sign of life has come, counting only time in which somebody looked.

        A trainer that was suspended, or trains for minutes between two looks, has not seen that its workers were
        silent.
        """
        now, beats = time.monotonic(), self.pulse.beats
        looked, self._looked = now - self._looked, now
        self._silent_seconds = 0.0 if beats != self._beats else self._silent_seconds + min(looked, LONGEST_LOOK_SECONDS)
        self._beats = beats
        return self._silent_seconds

    def how_it_ended(self, *, patience_seconds: float = 0.0) -> str | None:
        """In words; None while it runs."""
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
        """Whether it ended, and nobody killed it."""
        return self._process.exitcode is not None and self._process.exitcode >= 0

    def ask_to_stop(self) -> None:
        """Have it end by itself."""
        with suppress(ConnectionError):
            self.channel.send("stop")

    def end(self, *, patience_seconds: float = 0.0) -> None:
        """End the process, by force unless it has ended by itself within some time."""
        if patience_seconds:
            self._process.join(patience_seconds)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.channel.close()
        self.pulse.close()


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
