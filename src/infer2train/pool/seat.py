"""A worker's seat: its post stays, who sits there may be replaced; and when that has to be."""

import time
from contextlib import suppress
from dataclasses import dataclass

from infer2train.pool.messages import Done, Failed, News, Order, Ready
from infer2train.pool.transport import Link, LinkClosedError, Post

HANG_UP_SECONDS = 1.0
"""Until the system tells how a worker ended that hung up."""
LONGEST_LOOK_SECONDS = 1.0
"""Longer pauses between two looks at a worker count as this much of its silence."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a supervisor waits before it replaces a worker, and how often.

    Args:
        starting_seconds: until a worker has imported its packages and unpacked the task.
        silent_seconds: without a sign of life.
        answer_seconds: for one draw, with the refresh before it.
        restarts: of one worker without an answer in between.
    """

    starting_seconds: float = 300.0
    silent_seconds: float = 10.0
    answer_seconds: float = 600.0
    restarts: int = 3


class Seat:
    """One worker of a supervisor.

    Args:
        post: what stays.
        patience: with whoever sits there.
    """

    def __init__(self, post: Post, patience: Patience) -> None:
        self.post, self._patience = post, patience
        self.link: Link | None = None
        """To who sits there; None where nobody does any more."""
        self.failures = 0
        """Workers in a row that ended before they answered anything."""
        self.why = ""
        """The last one was replaced."""
        self.refused: str | None = None
        """Why nothing that the worker tells is taken any more."""

    def take(self, link: Link) -> None:
        """Sit down."""
        now = time.monotonic()
        self.link, self.refused = link, None
        self._is_there, self._is_ready, self._hung_up = False, False, ""
        self._started = self._ready_since = self._answered = now
        self._beats, self._looked, self._silent_seconds = 0, now, 0.0

    @property
    def name(self) -> str:
        """Its lane, and where that is, if it is elsewhere."""
        where = "" if self.link is None else self.link.where
        return f"{self.post.lane} ({where})" if where else self.post.lane

    @property
    def is_there(self) -> bool:
        """Whether somebody sits there who has a place to work, and was told of it."""
        return self.link is not None and self._is_there

    def comes(self) -> bool:
        """Whether who was waiting for a place has got one since the last call: it has not been told anything yet."""
        if self.link is None or self._is_there or not self.link.is_placed:
            return False
        self._is_there = True
        self._started = self._looked = time.monotonic()
        return True

    @property
    def is_ready(self) -> bool:
        """Whether who sits there has its task."""
        return self.link is not None and self._is_ready

    def tell(self, order: Order) -> None:
        """An order for who is there, if anybody is; one who has ended is found out at the next look."""
        if self.link is not None and self._is_there:
            with suppress(LinkClosedError):
                self.link.tell(order)

    def heard(self) -> list[News]:
        """What it has told; nothing where that does not count any more."""
        if self.link is None or self.refused is not None:
            return []
        try:
            news = self.link.heard()
        except LinkClosedError as error:
            if self.link.how_it_ended(patience_seconds=HANG_UP_SECONDS) is None:
                self._hung_up = str(error)
            return []
        for told in news:
            self._note(told)
        return news

    def _note(self, told: News) -> None:
        now = time.monotonic()
        if isinstance(told, Ready):
            self._is_ready, self._ready_since, self._answered = True, now, now
        elif isinstance(told, Done) or (isinstance(told, Failed) and told.ticket is not None):
            self.failures, self._answered = 0, now

    def ready_seconds(self) -> float:
        """How long it has been able to work."""
        return time.monotonic() - self._ready_since if self.is_ready else 0.0

    def why_replaced(self, owed: int | None, since: float) -> str | None:
        """Why nothing more is to be expected of who sits there; None while something is.

        Args:
            owed: the draw that it is to answer first; None where there is none.
            since: when it began to be.
        """
        if self.link is None:
            return None
        patience, phase, now = self._patience, self.link.phase, time.monotonic()
        if self.refused is not None:
            return self.refused
        if ended := self.link.how_it_ended() or self._hung_up:
            return f"{ended} while {phase}"
        if not self._is_there:
            return None
        if not self._is_ready:
            return None if now - self._started < patience.starting_seconds else "did not start in time"
        if self._silence(self.link.beats) > patience.silent_seconds:
            return f"gave no sign of life for {patience.silent_seconds:g} s while {phase}"
        if owed is not None and now - max(since, self._answered) > patience.answer_seconds:
            return f"took more than {patience.answer_seconds:g} s for draw {owed} ({phase})"
        return None

    def _silence(self, beats: int) -> float:
        """How long no sign of life has come, counting only time in which somebody looked.

        A trainer that was suspended, or trains for minutes between two looks, has not seen that its workers were
        silent.
        """
        now = time.monotonic()
        looked, self._looked = now - self._looked, now
        self._silent_seconds = 0.0 if beats != self._beats else self._silent_seconds + min(looked, LONGEST_LOOK_SECONDS)
        self._beats = beats
        return self._silent_seconds
