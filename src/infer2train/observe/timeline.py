"""What each part of the machine did when: spans on lanes, with their totals.

One lane for the trainer, one for each oracle. Spans come from several processes and share one clock, `perf_counter`,
which counts from the machine's start. The progress line, metrics, report and trace read from here.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any

TRAINER = "trainer"
TRAINER_SPANS = ("scores", "views", "train", "publish")
"""What the trainer's lane shows: waiting for scores, making the picked views, its step, publishing weights."""
ORACLE_SPANS = ("views", "forward", "refresh")
"""What an oracle's lane shows: candidates' views, its forward pass, new weights. Between them it is idle."""
AHEAD = ", next version"
"""Ends the name of the lane on which an oracle's second thread prepares new weights while the first goes on scoring."""
KEPT = 20_000
"""Spans that are kept to be drawn; some hundred draws."""


@dataclass(frozen=True)
class Span:
    """Something that one lane did.

    Args:
        lane: `trainer`, `oracle 0`, …
        name: of what it did.
        started: on the clock of `perf_counter` (seconds).
        seconds: how long it took.
        details: such as the draw and the version; JSON types.
    """

    lane: str
    name: str
    started: float
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """Collects spans; any thread may call it.

    Example:
        >>> timeline = Timeline()
        >>> with timeline.span("trainer", "train", step=3):
        ...     pass
        >>> [span.name for span in timeline.recent], timeline.seconds("trainer")["train"] > 0
        (['train'], True)
    """

    def __init__(self) -> None:
        self.recent: deque[Span] = deque(maxlen=KEPT)
        self._seconds: dict[str, Counter[str]] = {}
        self._listeners: list[Callable[[Span], None]] = []
        self._lock = Lock()

    def add(self, span: Span) -> None:
        """Take in what was done."""
        with self._lock:
            self.recent.append(span)
            self._seconds.setdefault(span.lane, Counter())[span.name] += span.seconds  # type: ignore[assignment]  # a Counter's numbers are whole to mypy
            for listener in self._listeners:
                listener(span)

    @contextmanager
    def span(self, lane: str, name: str, **details: Any) -> Iterator[None]:
        """Take in what is done within."""
        started = perf_counter()
        try:
            yield
        finally:
            self.add(Span(lane, name, started, perf_counter() - started, details))

    def watch(self, items: Iterable[Any], lane: str, making: str, using: str, **details: Any) -> Iterator[Any]:
        """The same items; how long each took to come is noted as `making`, what followed until the next as `using`."""
        source, end = iter(items), object()
        while True:
            started = perf_counter()
            if (item := next(source, end)) is end:
                return
            self.add(Span(lane, making, started, perf_counter() - started, details))
            with self.span(lane, using, **details):
                yield item

    def lanes(self) -> list[str]:
        """The lanes that did anything, in the order in which they began to."""
        with self._lock:
            return list(self._seconds)

    def seconds(self, lane: str) -> dict[str, float]:
        """What a lane has spent so far, by what on."""
        with self._lock:
            return dict(self._seconds.get(lane, {}))

    def oracle_seconds(self) -> dict[str, float]:
        """The same, of all oracles together; without what was prepared beside scoring."""
        total: Counter[str] = Counter()
        with self._lock:
            for lane, seconds in self._seconds.items():
                if lane != TRAINER and not lane.endswith(AHEAD):
                    total.update(seconds)
        return dict(total)

    def listen(self, listener: Callable[[Span], None]) -> None:
        """Have every span from now on handed to `listener` too."""
        self._listeners.append(listener)


def last_steps(spans: Iterable[Span], steps: int) -> list[Span]:
    """What the lanes did during the last so many steps of an epoch; the spans that reach into them, whole.

    Args:
        spans: as `Timeline.recent` has them; without those of epochs before.
        steps: at most so many.
    """
    found = list(spans)
    trainer = sorted((span for span in found if span.lane == TRAINER), key=lambda span: span.started)
    ends = [place for place, span in enumerate(trainer) if span.name == "train"]
    if not ends:
        return []
    before = trainer[ends[-steps - 1]] if len(ends) > steps else None
    rest = [span for span in trainer if before is None or span.started > before.started]
    while rest[0].name == "publish":  # it belongs to the step before
        rest.pop(0)
    begin, end = rest[0].started, max(span.started + span.seconds for span in rest)
    return [span for span in found if begin <= span.started + span.seconds and span.started <= end
            and (span.lane != TRAINER or span.started >= begin)]  # fmt: skip
