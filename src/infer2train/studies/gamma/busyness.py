"""How much of a core other processes take while this one measures: work of a known CPU time, timed by the wall."""

from collections.abc import Callable
from time import perf_counter, thread_time

PROBE_SECONDS = 0.05
"""CPU time of one look: several of a scheduler's slices."""
BUSY = 0.1
"""Share of a core that is worth a word."""


class Busyness:
    """Looks when it is called, and adds up what it saw.

    Args:
        wall: a clock of the wall.
        cpu: a clock of the calling thread's CPU time.
    """

    def __init__(self, wall: Callable[[], float] = perf_counter, cpu: Callable[[], float] = thread_time) -> None:
        self._wall, self._cpu = wall, cpu
        self._passed = self._got = 0.0

    def __call__(self) -> None:
        wall, cpu = self._wall(), self._cpu()
        while self._cpu() - cpu < PROBE_SECONDS:
            pass
        self._passed += self._wall() - wall
        self._got += self._cpu() - cpu

    @property
    def share(self) -> float:
        """Of the core's time that others had, 0 to 1."""
        return max(0.0, 1 - self._got / self._passed) if self._passed else 0.0
