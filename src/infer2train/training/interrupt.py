"""Ctrl-C and SIGTERM as a wish that the training loop fulfils when its step is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(Exception):  # noqa: N818 -- not an error: it did what was asked
    """The user asked the run to stop; it has finished its step and written a checkpoint."""


@dataclass
class Interrupt:
    """Whether the user has asked the run to stop."""

    is_set: bool = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turns Ctrl-C (and SIGTERM) into a wish that the loop fulfils after its step; a second one stops at once."""
    interrupt = Interrupt()

    def wish(number: int, _frame: FrameType | None) -> None:
        if interrupt.is_set:
            raise KeyboardInterrupt
        interrupt.is_set = True

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
