"""The inline pool: the oracle in the trainer's own process and time. The reference for every other pool."""

from collections import deque
from time import perf_counter

from infer2train.addresses import Addresses
from infer2train.oracle.engine import Engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.scorer import Scorer, Scores, chunks
from infer2train.oracle.snapshot import Record
from infer2train.pipeline import AddressPipeline
from infer2train.pool.pool import Pool


class InlinePool(Pool):
    """Scores a draw when it is collected; its views may have been made ahead by the pipeline's workers.

    Args:
        engine: runs the oracle; None where candidates need no score but only labels.
        scorer: the task.
        pipeline: makes the candidates' views.
        monitor: measures the engine's fidelity after each refresh; None where none is measured.
    """

    def __init__(
        self,
        engine: Engine | None,
        scorer: Scorer,
        pipeline: AddressPipeline,
        monitor: FidelityMonitor | None = None,
    ) -> None:
        self._monitor = monitor
        self._engine = engine
        self._scorer = scorer
        self._pipeline = pipeline
        self._records: dict[int, Record] = {}
        self._in_use: Record | None = None
        self._submitted: deque[tuple[int, int, int | None]] = deque()
        self._seconds = {"views": 0.0, "scoring": 0.0, "publishing": 0.0}

    def publish(self, record: Record) -> Record:
        started = perf_counter()
        if self._engine is not None:
            record = self._engine.calibrated(record)
        self._records[record.version] = record
        self._seconds["publishing"] += perf_counter() - started
        return record

    def retire(self, version: int) -> None:
        self._records = {v: record for v, record in self._records.items() if v >= version}
        if self._in_use is not None and self._in_use.version < version:
            self._in_use = None  # the engine has copied what it needs

    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        if version is not None and version not in self._records:
            raise ValueError(
                f"a draw must be scored by a published version: got {version} for draw {draw}, published "
                f"{sorted(self._records)}; publish it first"
            )
        pieces = chunks(addresses, self._scorer.chunk)
        for piece in pieces:
            self._pipeline.put(piece)
        self._submitted.append((draw, len(pieces), version))

    def collect(self, draw: int) -> Scores:
        expected, num_chunks, version = self._submitted.popleft()
        assert draw == expected, (draw, expected)
        if version is not None:
            self._use(version)
        started, views = perf_counter(), self._seconds["views"]
        scores = self._scorer.score(self._engine, draw, (self._view() for _ in range(num_chunks)))
        self._seconds["scoring"] += perf_counter() - started - (self._seconds["views"] - views)
        return scores

    def _view(self) -> object:
        started = perf_counter()
        batch = self._pipeline.get()
        self._seconds["views"] += perf_counter() - started
        return batch

    def _use(self, version: int) -> None:
        assert self._engine is not None
        record = self._records[version]
        if self._in_use is record:
            return
        started = perf_counter()
        self._engine.refresh(record)
        if self._monitor is not None:
            self._monitor.measure(self._engine)
        self._in_use = record
        self._seconds["publishing"] += perf_counter() - started

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    def totals(self) -> dict[str, float]:
        engine = self._engine.totals() if self._engine is not None else {}
        return engine | (self._monitor.totals() if self._monitor is not None else {})

    def close(self) -> None:
        self._submitted.clear()
        self._pipeline.close()
