"""Handing out draws, one after another: planned, put on its way as far ahead as is worth it, taken when it is done."""

from time import perf_counter
from typing import Any, ClassVar, Protocol, runtime_checkable

from infer2train.draws.draw import Draw
from infer2train.loader.course import Course
from infer2train.loader.planning import Plan
from infer2train.loader.progress import Progress

ONE_AT_A_TIME = (
    "a mined loader is iterated once at a time: got a batch asked of an iteration that another one has taken the place "
    "of; look at a batch (next(iter(loader))) before or after an epoch, or at the DataLoader that it was made from"
)

LOADED = (
    "a state is gone on from by a new iteration: got a batch asked of the one that was under way at load_state_dict(); "
    "leave that loop (break) and iterate the loader again"
)


@runtime_checkable
class Line(Protocol):
    """Draws on their way: those put in first come out first."""

    def __len__(self) -> int: ...

    @property
    def depth(self) -> int:
        """Draws worth having on their way."""

    def submit(self, draw: Draw) -> None:
        """Take in a planned draw, whose version is published."""

    def take(self) -> tuple[Draw, Any]:
        """The oldest, and its batch; waits for it."""


class Handing:
    """Something whose draws are handed out.

    Args:
        plan: of its draws.
        line: that they are on.
    """

    made_by: ClassVar[str]
    """The function that makes it, for whoever needs another one."""
    _course: Course
    _progress: Progress

    def __init__(self, plan: Plan, line: Line) -> None:
        self._plan, self._line, self._is_closed = plan, line, False
        self._iteration, self._ended_by = 0, ONE_AT_A_TIME

    def _next_batch(self) -> Any:
        asked = perf_counter()
        self._require_open()
        self._progress.note_training()
        self._progress.ask()
        if not len(self._line):
            self._line.submit(self._plan.next())
        self._submit_ahead()
        draw, batch = self._line.take()
        self._progress.hand_out(draw, asked)
        return batch

    def _begun(self) -> int:
        """The number of an iteration that begins now."""
        self._iteration, self._ended_by = self._iteration + 1, ONE_AT_A_TIME
        return self._iteration

    def _require_under_way(self, iteration: int) -> None:
        """Refuse an iteration that was ended by something else than its loop."""
        if iteration != self._iteration and (self._course.left or self._ended_by == LOADED):
            self._require_open()
            raise RuntimeError(self._ended_by)

    def _require_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                "a loader that is closed has no more batches: got one that was closed, by close() or by "
                f"{self.made_by} being called again with its optimizer; iterate the loader made last, or call "
                f"{self.made_by} again. To have two of them for one optimizer, leave optimizer= out of both and call "
                "step_done() of each after a step"
            )

    def _submit_ahead(self) -> None:
        """Put every draw on its way whose version is published, as far ahead as is worth it."""
        while len(self._line) < min(self._line.depth, self._course.left):
            if (draw := self._plan.ready(ahead=len(self._line))) is None:
                return
            self._line.submit(draw)
