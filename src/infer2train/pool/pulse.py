"""A worker's sign of life, in memory that it shares with the trainer's process: beats, and what it is doing."""

import mmap
import os
import struct

from infer2train.pool.segment import anonymous_file

PHASES = (
    "starting",
    "idle",
    "taking a record",
    "refreshing",
    "making views",
    "scoring",
    "answering",
)
BEAT_SECONDS = 0.1
"""Between the beats of a worker that runs."""
_PAGE = struct.Struct("<Qq")


class Pulse:
    """Beats, and the number of a phase; written by the worker, read by the trainer's process.

    Args:
        descriptor: of the shared page. Default: a new one.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = anonymous_file(_PAGE.size) if descriptor is None else descriptor
        self._page = mmap.mmap(self.descriptor, _PAGE.size)

    @property
    def beats(self) -> int:
        """So many beats so far."""
        return int(_PAGE.unpack_from(self._page)[0])

    @property
    def phase(self) -> str:
        """What the worker is doing."""
        return PHASES[_PAGE.unpack_from(self._page)[1] % len(PHASES)]

    def beat(self) -> None:
        """Say that the process runs."""
        struct.pack_into("<Q", self._page, 0, self.beats + 1)

    def close(self) -> None:
        """Let go of the page; nothing is asked of it after."""
        self._page.close()
        os.close(self.descriptor)

    def enter(self, phase: str) -> None:
        """Say what the process does from now on."""
        struct.pack_into("<q", self._page, 8, PHASES.index(phase))
