"""Which weights an engine uses: that of the version a draw asks for, whatever came before.

Records are prepared as they are published, beside the program in use where a thread is given for that, so that an
engine goes on scoring draws of the old version while the new one is folded, quantised and compiled.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from time import perf_counter

from infer2train.observe.timeline import AHEAD, Span, Timeline
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.snapshot import Record


@dataclass
class _Published:
    record: Record
    program: "Future[tuple[Prepared, Span]] | None" = None


class Refresher:
    """Keeps published records and refreshes one engine from them; called by one thread.

    Args:
        engine: what is refreshed.
        monitor: measures the engine's fidelity at versions of which the model itself said something; or None.
        timeline: where refreshes are noted, on `lane`.
        lane: of the engine.
        beside: prepares programs beside the one in use; None prepares them when they are first asked for.
        on_calibrated: told of every record whose ranges were measured here, in the thread that measured them.
    """

    def __init__(
        self,
        engine: Engine,
        monitor: FidelityMonitor | None,
        timeline: Timeline,
        lane: str,
        *,
        beside: Executor | None = None,
        on_calibrated: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.engine = engine
        self._monitor, self._timeline, self._lane = monitor, timeline, lane
        self._beside, self._on_calibrated = beside, on_calibrated
        self._published: Mapping[int, _Published] = {}
        """Replaced, never changed: of a stream pool the trainer's thread reads it while the oracle's publishes."""
        self._in_use: Record | None = None

    @property
    def records(self) -> dict[int, Record]:
        """What is published and not retired, by version."""
        return {version: published.record for version, published in self._published.items()}

    def publish(self, record: Record) -> None:
        """Keep a record, with the ranges that the engine needs.

        Raises:
            ValueError: as `Engine.calibrated`, where nothing is prepared beside.
        """
        published = _Published(record if self._beside is not None else self._calibrated(record))
        self._published = {**self._published, record.version: published}
        if self._beside is not None:
            published.program = self._beside.submit(self._prepare, published)

    def retire(self, version: int) -> None:
        """Forget the versions below this one; what nobody has begun to prepare of them is not prepared."""
        for v, published in self._published.items():
            if v < version and published.program is not None:
                published.program.cancel()
        self._published = {v: published for v, published in self._published.items() if v >= version}
        if self._in_use is not None and self._in_use.version < version:
            self._in_use = None  # the engine has copied what it needs

    def skip(self, version: int) -> None:
        """Do without the versions below this one that nobody has begun to prepare."""
        self._published = {
            v: published
            for v, published in self._published.items()
            if v >= version or published.program is None or not published.program.cancel()
        }

    def use(self, version: int) -> None:
        """Have the engine use the weights of a version; waits until they are prepared.

        Raises:
            ValueError: as `Engine.prepared`.
        """
        published = self._published[version]
        if self._in_use is published.record:
            return
        with self._timeline.span(self._lane, "refresh", version=version):
            self.engine.use(self._program(published))
            self._in_use = published.record
            if self._monitor is not None and published.record.probe_scores is not None:
                self._monitor.measure(self.engine, published.record.probe_scores)

    def newest_ready(self) -> int | None:
        """The newest version that could be used without waiting, or is in use; None where there is none."""
        ready = [v for v, p in self._published.items() if p.program is None or p.program.done()]
        return max(ready, default=None)

    def totals(self) -> dict[str, float]:
        """Of the engine's refreshes and of its fidelity, see `infer2train.observe.metrics.window`."""
        return self.engine.totals() | (self._monitor.totals() if self._monitor is not None else {})

    def _program(self, published: _Published) -> Prepared:
        if self._beside is None:
            return self.engine.prepared(published.record)
        # An engine prepares one program at a time, so also one that was let go before is prepared beside.
        program, published.program = published.program or self._beside.submit(self._prepare, published), None
        prepared, span = program.result()
        self._timeline.add(span)
        return prepared

    def _prepare(self, published: _Published) -> tuple[Prepared, Span]:
        started = perf_counter()
        published.record = self._calibrated(published.record)
        prepared = self.engine.prepared(published.record)
        details = {"version": prepared.version}
        return prepared, Span(self._lane + AHEAD, "prepare", started, perf_counter() - started, details)

    def _calibrated(self, record: Record) -> Record:
        calibrated = self.engine.calibrated(record)
        if calibrated is not record:
            self._on_calibrated(calibrated)
        return calibrated
