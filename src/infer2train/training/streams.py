"""Trainer and oracle on one device: side by side, on a CUDA stream each, or in turn on a CPU.

Between `device_steps`, which knows what has to wait for what, and CUDA, which has to be told.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor

from infer2train.training.graphs import Work, captured

STREAMS = 32
"""That torch has of each priority on a device: whoever asks for more is given one that somebody has."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Within, the trainer's work goes to a CUDA stream of its own; on a CPU nothing is different.

    Graphs are recorded on no default stream, and trainings side by side in threads share none. It goes first: a
    trainer's kernels are small and wait for one another, an oracle's fill what they leave.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # torch's
        stream.wait_stream(torch.cuda.current_stream(device))  # which has made what is trained
        with torch.cuda.stream(stream):
            yield


class Streams:
    """The work of trainer and oracle, each in the order in which it is given.

    The trainer's stream is the one that is current where the methods are called (`own_stream`); the oracle has one too.

    Args:
        device: of both.
        is_recorded: record work as CUDA graphs and replay it; else it is run as it is written.
    """

    def __init__(self, device: torch.device, *, is_recorded: bool) -> None:
        self._is_recorded = is_recorded
        self._replays: dict[Hashable, Work] = {}
        self._clock = Clock(device)
        self._oracle: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._device = device
            self._oracle = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
            self._picked = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextmanager
    def oracle(self) -> Iterator[None]:
        """Within, what is given to do is the oracle's."""
        if self._oracle is None:
            yield
        else:
            with torch.cuda.stream(self._oracle):
                yield

    def oracle_waits(self) -> None:
        """What the oracle is given from now on waits for all that the trainer has been given."""
        if self._oracle is not None:
            self._oracle.wait_stream(torch.cuda.current_stream(self._device))

    def score(self, work: Work) -> None:
        """Have the oracle score and pick a draw."""
        with self.oracle():
            do = self._made("score", work, list)  # recorded first: that is no scoring
            with self._clock.running():
                do()
        if self._oracle is not None:
            self._picked.record(self._oracle)

    def trainer_waits(self) -> None:
        """What the trainer is given from now on waits for the draw that is scored last, or is being scored."""
        if self._oracle is not None:
            torch.cuda.current_stream(self._device).wait_event(self._picked)

    def train(self, kind: Hashable, work: Work, changed: Callable[[], Iterable[Tensor]]) -> None:
        """Have the trainer make a step.

        Args:
            kind: of work; work of one kind does the same.
            work: the step.
            changed: the tensors that it changes and another step reads.
        """
        self._made(kind, work, changed)()

    def scoring_seconds(self) -> float:
        """How long the oracle scored, in all that is known to be done since the last time."""
        return self._clock.seconds()

    def _made(self, kind: Hashable, work: Work, changed: Callable[[], Iterable[Tensor]]) -> Work:
        """The work as it is done: as it is written, or its recording."""
        if not self._is_recorded:
            return work
        if kind not in self._replays:
            self._replays[kind] = captured(work, changed())
        return self._replays[kind]


class Clock:
    """Adds up what a device spends on something, without waiting for it.

    Example:
        >>> clock = Clock(torch.device("cpu"))
        >>> with clock.running():
        ...     pass
        >>> clock.seconds() > 0, clock.seconds()
        (True, 0.0)
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._begun: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, work is given to the current stream."""
        started = perf_counter()
        if self._is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
        yield
        if self._is_cuda:
            end.record()
            self._begun.append((begin, end))
        else:
            self._seconds += perf_counter() - started

    def seconds(self) -> float:
        """What was added since the last time; on CUDA what the device has finished by now."""
        while self._begun and self._begun[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._begun.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
        added, self._seconds = self._seconds, 0.0
        return added
