"""A run as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: every span of the timeline, as it ends.

The array form of the Trace Event Format, which readers take without its closing bracket: a killed run leaves a trace.
A process in it is a process of the run, a thread is a lane; what a span's details say stands in its `args`.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from infer2train.observe.timeline import AHEAD, TRAINER, Span

MOST_EVENTS = 1_000_000
"""About 150 MB; what comes after is left out."""
INLINE = "oracle"
"""The lane of an oracle in the trainer's own process."""


class Trace:
    """Writes spans to a file; `Timeline.listen` hands them to `add`.

    Args:
        path: of the file; one that is there is replaced.
        most_events: that are written.

    Example:
        >>> with Trace(Path("trace.json")) as trace:
        ...     timeline.listen(trace.add)
    """

    def __init__(self, path: Path, most_events: int = MOST_EVENTS) -> None:
        self._path, self._most_events = path, most_events
        self._file = path.open("w", buffering=1, encoding="utf-8")  # by lines: nothing waits for a run to end well
        self._began = perf_counter()
        self._processes: dict[str, int] = {}
        self._lanes: dict[str, tuple[int, int]] = {}
        self._written = self._events = 0

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, span: Span) -> None:
        """Write a span down."""
        self._events += 1
        if self._events == self._most_events + 1:
            warnings.warn(
                f"{self._path} is full after {self._most_events} events: what follows is left out", RuntimeWarning
            )
        if self._events > self._most_events or self._file.closed:
            return
        with self._tried():
            process, thread = self._lane(span.lane)
            event: dict[str, Any] = {"name": span.name, "cat": span.lane, "pid": process, "tid": thread}
            event |= {"ts": round(1e6 * (span.started - self._began), 3), "args": span.details}
            if span.name == "lost":
                self._write(event | {"ph": "i", "s": "p"})
            else:
                self._write(event | {"ph": "X", "dur": round(1e6 * span.seconds, 3)})

    def close(self) -> None:
        """End the file properly. May be called twice."""
        if not self._file.closed:
            with self._tried():
                self._file.write("\n]\n" if self._written else "[]\n")
                self._file.close()

    @contextmanager
    def _tried(self) -> Iterator[None]:
        """Within, something is written; where that cannot be (a full disk), the trace ends and the run goes on."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._file.close()
            warnings.warn(
                f"a trace must be written while the run goes on: got '{error.strerror or error}' for {self._path}; the "
                "run goes on without its trace",
                RuntimeWarning,
            )

    def _lane(self, lane: str) -> tuple[int, int]:
        """Process and thread of a lane, which are named when they come first."""
        if lane not in self._lanes:
            process = TRAINER if lane == INLINE else lane.removesuffix(AHEAD)
            if process not in self._processes:
                self._processes[process] = len(self._processes) + 1
                self._name("process", process, self._processes[process], 0)
            number = self._processes[process]
            thread = sum(known == number for known, _ in self._lanes.values()) + 1
            self._lanes[lane] = number, thread
            self._name("thread", lane, number, thread)
        return self._lanes[lane]

    def _name(self, what: str, name: str, process: int, thread: int) -> None:
        self._write({"name": f"{what}_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}})

    def _write(self, event: dict[str, Any]) -> None:
        # The comma comes with the next event: only the bracket is missing where nothing comes any more.
        self._file.write(("," if self._written else "[") + "\n" + json.dumps(event))
        self._written += 1
