"""The process pool: oracles in processes of their own, on cores of their own, scoring ahead of the trainer.

What crosses is addresses, scores and published records; a worker makes its own views of its own copy of the data.
Work is idempotent and its outcome a pure function of (addresses, version), so a worker that is killed, stopped or hangs
is replaced, gets the records again, and does again what it had not answered: the trainer sees only that it waits.
"""

import atexit
import os
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from infer2train.checkpoint.state import decode
from infer2train.draws.addresses import Addresses
from infer2train.observe.timeline import Span
from infer2train.oracle.scorer import Scores
from infer2train.oracle.snapshot import NotFiniteError, Record
from infer2train.pool.channel import ChannelClosedError, Message, wait_for
from infer2train.pool.fingerprint import differences, fingerprint
from infer2train.pool.pool import OracleLostError, Pool, require_published
from infer2train.pool.segment import Layout, Segment, anonymous_file, received
from infer2train.pool.task import ScoringTask, packed
from infer2train.pool.worker_process import GUARD, JOIN_SECONDS, WorkerProcess, starting_again

HANG_UP_SECONDS = 1.0
"""Until the system tells how a process ended that hung up."""
LOOK_SECONDS = 0.02
"""Between two looks at the workers while the trainer waits for scores."""


class OracleError(RuntimeError):
    """Something failed in an oracle's process; the message has what failed there, and where."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the trainer waits before it replaces a worker, and how often.

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


@dataclass
class _Published:
    record: Record
    segment: Segment
    layout: Layout
    sequence: int


@dataclass
class _Job:
    ticket: int
    draw: int
    addresses: Addresses
    version: int | None
    worker: "_Seat | None" = None
    since: float = 0.0
    """When the worker began to owe this answer before any other."""


@dataclass
class _Seat:
    """A worker's place: its lane and cores stay, its process may be replaced."""

    lane: str
    cores: tuple[int, ...]
    process: WorkerProcess | None = None
    failures: int = 0
    """Processes in a row that ended before they answered anything."""
    why: str = ""


class ProcessPool(Pool):
    """Scores draws in processes of its own.

    Args:
        task: what is scored; its engine is not used here again.
        workers: processes.
        cores: that they may run on, shared out among them; empty for those of this process.
        queue_depth: draws that are submitted ahead.
        is_freshest: whether draws are scored by the newest weights that a worker has.
        is_newest_first: whether they begin with the draw that was submitted last, where late ones are done without.
        patience: with workers.

    Raises:
        ValueError: the task cannot be sent to another process.
        RuntimeError: the script that was started has no `if __name__ == "__main__"`.
    """

    def __init__(
        self,
        task: ScoringTask,
        *,
        workers: int = 1,
        cores: Sequence[int] = (),
        queue_depth: int = 4,
        is_freshest: bool = False,
        is_newest_first: bool = False,
        patience: Patience | None = None,
    ) -> None:
        super().__init__()
        if starting_again():
            raise RuntimeError(GUARD)
        self.queue_depth = queue_depth
        self._patience = patience or Patience()
        self._is_freshest, self._is_newest_first = is_freshest, is_newest_first
        self._has_engine = task.engine is not None
        self._fingerprint = fingerprint(task.reader)
        task.reader.close()
        content = packed(task)
        self._task, self._task_bytes = anonymous_file(len(content)), len(content)
        os.pwrite(self._task, content, 0)
        self._threads = max(1, len(cores) // workers) if cores else torch.get_num_threads()
        self._seats = [_Seat(f"oracle {i}", tuple(cores[i::workers])) for i in range(workers)]
        self._published: dict[int, _Published] = {}
        self._sequence = 0
        self._room: tuple[Mapping[str, Tensor], Segment, Layout] | None = None
        self._tickets = 0
        self._order: deque[_Job] = deque()
        self._answers: dict[int, Scores | Exception] = {}
        self._seconds = {"views": 0.0, "scoring": 0.0, "publishing": 0.0}
        self._totals: dict[str, dict[str, float]] = {}
        self._gone: dict[str, float] = {}
        self._is_closed, self._has_started = False, False
        self._at_exit = partial(_close_at_exit, weakref.WeakMethod(self.close), os.getpid())
        atexit.register(self._at_exit)
        for seat in self._seats:
            self._start(seat)

    # The contract

    @property
    def records(self) -> Mapping[int, Record]:
        return {version: published.record for version, published in self._published.items()}

    def room(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        started = perf_counter()
        segment, layout, room = Segment.with_room(tensors)
        self._room = room, segment, layout
        self._seconds["publishing"] += perf_counter() - started
        return room

    def publish(self, record: Record) -> None:
        if not self._has_engine:
            return
        started = perf_counter()
        if self._room is None or record.tensors is not self._room[0]:
            copies = self.room(record.tensors)
            for name, tensor in record.tensors.items():
                copies[name].copy_(tensor)
            record = replace(record, tensors=copies)
        assert self._room is not None
        (_, segment, layout), self._room = self._room, None
        self._sequence += 1
        segment.seal(self._sequence, record.version)
        published = _Published(record, segment, layout, self._sequence)
        self._published[record.version] = published
        for seat in self._seats:
            self._send_record(seat, published)
        self._seconds["publishing"] += perf_counter() - started
        self._look(0.0)

    def retire(self, version: int) -> None:
        self._published = {v: published for v, published in self._published.items() if v >= version}
        self._say("retire", version=version)

    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        require_published(draw, version, self.records)
        self._tickets += 1
        job = _Job(self._tickets, draw, addresses, version)
        self._order.append(job)
        self._assign(job)
        self._look(0.0)

    def is_ready(self, draw: int) -> bool:
        self._look(0.0)
        return any(job.draw == draw and job.ticket in self._answers for job in self._order)

    def collect(self, draw: int) -> Scores:
        job = self._oldest(draw)
        started = perf_counter()
        try:
            while job.ticket not in self._answers:
                self._look(LOOK_SECONDS)
                if not any(seat.process for seat in self._seats) and job.ticket not in self._answers:
                    self._raise_lost()
        finally:
            self._seconds["scoring"] += perf_counter() - started
        self._order.popleft()
        answer = self._answers.pop(job.ticket)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self, draw: int) -> None:
        job = self._oldest(draw)
        self._order.popleft()
        self._answers.pop(job.ticket, None)
        self._say("cancel", ticket=job.ticket)

    def _oldest(self, draw: int) -> _Job:
        assert self._order, draw
        assert self._order[0].draw == draw, (self._order[0].draw, draw)
        return self._order[0]

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    def totals(self) -> dict[str, float]:
        total = dict(self._gone)
        for told in self._totals.values():
            _add(total, told)
        processes = [seat.process for seat in self._seats if seat.process is not None]
        _add(total, {"oracle_available_seconds": sum(process.ready_seconds() for process in processes)})
        return total

    def forget(self) -> None:
        self._order.clear()
        self._answers.clear()
        self._say("forget")

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self._at_exit)
        processes = [seat.process for seat in self._seats if seat.process is not None]
        for process in processes:
            process.ask_to_stop()
        deadline = time.monotonic() + JOIN_SECONDS
        for process in processes:
            # One that still starts has nothing to put away, and would not hear of it.
            process.end(patience_seconds=max(0.01, deadline - time.monotonic()) if process.is_ready else 0.0)
        for seat in self._seats:
            seat.process = None
        self._order.clear()
        self._answers.clear()
        self._published.clear()
        os.close(self._task)

    # Workers

    def workers(self) -> dict[str, int]:
        """The processes that there are: lane -> process id."""
        return {seat.lane: seat.process.pid for seat in self._seats if seat.process is not None}

    def phases(self) -> dict[str, str]:
        """What each of them is doing right now."""
        return {seat.lane: seat.process.pulse.phase for seat in self._seats if seat.process is not None}

    def _start(self, seat: _Seat) -> None:
        """A new process in a seat, which is told all that the one before it was told and had not answered."""
        seat.process = WorkerProcess(
            seat.lane,
            self._task,
            self._task_bytes,
            cores=seat.cores,
            threads=self._threads,
            is_freshest=self._is_freshest,
            is_newest_first=self._is_newest_first,
        )
        for published in self._published.values():
            self._send_record(seat, published)
        for job in self._order:
            if job.worker is seat and job.ticket not in self._answers:
                self._send_job(seat, job)

    def _assign(self, job: _Job) -> None:
        """Give a draw to the worker that has the fewest."""
        if not any(seat.process for seat in self._seats):
            self._raise_lost()
        owed = Counter(other.worker.lane for other in self._order if other.worker and other.ticket not in self._answers)
        seat = min((seat for seat in self._seats if seat.process), key=lambda seat: owed[seat.lane])
        job.worker = seat
        self._send_job(seat, job)

    def _send_job(self, seat: _Seat, job: _Job) -> None:
        assert seat.process is not None
        job.since = time.monotonic()
        payload = job.addresses.ids.tobytes() + job.addresses.seeds.tobytes()
        with suppress(ChannelClosedError):  # it is found to have ended, and replaced, at the next look
            seat.process.channel.send("draw", payload, ticket=job.ticket, draw=job.draw, version=job.version)

    def _send_record(self, seat: _Seat, published: _Published) -> None:
        if seat.process is None:
            return
        record, segment = published.record, published.segment
        ranges = {name: tensor.contiguous() for name, tensor in record.ranges.items()}
        with suppress(ChannelClosedError):
            seat.process.channel.send(
                "record",
                save_tensors(ranges) if ranges else b"",
                (segment.descriptor,),
                version=record.version,
                sequence=published.sequence,
                nbytes=segment.nbytes,
                layout=published.layout,
                probe_scores=None if record.probe_scores is None else record.probe_scores.tolist(),
            )

    def _say(self, kind: str, **fields: Any) -> None:
        for seat in self._seats:
            if seat.process is not None:
                with suppress(ChannelClosedError):
                    seat.process.channel.send(kind, **fields)

    # Watching them

    def _look(self, seconds: float) -> None:
        """Take in what workers say, for so long at most, and replace those that will say nothing any more."""
        channels = [seat.process.channel for seat in self._seats if seat.process is not None]
        wait_for(channels, seconds)
        for seat in self._seats:
            if seat.process is not None:
                self._listen(seat, seat.process)
        for seat in self._seats:
            if seat.process is not None and (why := self._why_replaced(seat, seat.process)):
                self._replace(seat, why)

    def _listen(self, seat: _Seat, process: WorkerProcess) -> None:
        if process.refused is not None:
            return  # nothing that it says counts any more
        try:
            process.channel.flush()
            messages = process.channel.receive()
        except ChannelClosedError:
            process.is_hung_up = process.how_it_ended(patience_seconds=HANG_UP_SECONDS) is None
            return
        for message in messages:
            getattr(self, f"_on_{message.kind}")(seat, process, message)

    def _why_replaced(self, seat: _Seat, process: WorkerProcess) -> str | None:
        """Why nothing more is to be expected of a worker; None while something is."""
        patience, phase, now = self._patience, process.pulse.phase, time.monotonic()
        if process.refused is not None:
            return process.refused
        if (ended := process.how_it_ended()) is not None or process.is_hung_up:
            return f"{ended or 'hung up'} while {phase}"
        if not process.is_ready:
            return None if now - process.started < patience.starting_seconds else "did not start in time"
        if process.silent_seconds() > patience.silent_seconds:
            return f"gave no sign of life for {patience.silent_seconds:g} s while {phase}"
        owed = next((job for job in self._order if job.worker is seat and job.ticket not in self._answers), None)
        if owed is not None and now - max(owed.since, process.answered) > patience.answer_seconds:
            return f"took more than {patience.answer_seconds:g} s for draw {owed.draw} ({phase})"
        return None

    def _replace(self, seat: _Seat, why: str) -> None:
        process, seat.process = seat.process, None
        assert process is not None
        # A script or a task that ends the first process while it starts ends the next one too.
        is_hopeless = not self._has_started and process.ended_by_itself()
        self._leave(seat, process)
        seat.failures, seat.why = seat.failures + 1, why
        is_again = seat.failures <= self._patience.restarts and not is_hopeless
        self.timeline.add(Span(seat.lane, "lost", perf_counter(), 0.0, {"why": why, "again": is_again}))
        if is_again:
            _add(self._gone, {"worker_restarts": 1})
            warnings.warn(f"{seat.lane} {why}; it is started again", RuntimeWarning)
            self._start(seat)
            return
        times = f", {seat.failures} times in a row" if seat.failures > 1 else ""
        warnings.warn(f"{seat.lane} {why}{times}; it is given up", RuntimeWarning)
        orphans = [job for job in self._order if job.worker is seat and job.ticket not in self._answers]
        if any(other.process for other in self._seats):
            for job in orphans:
                self._assign(job)

    def _leave(self, seat: _Seat, process: WorkerProcess) -> None:
        """End a process, and keep what it had counted."""
        process.end()
        _add(self._gone, self._totals.pop(seat.lane, {}))
        _add(self._gone, {"oracle_available_seconds": process.ready_seconds()})

    def _raise_lost(self) -> None:
        told = "; ".join(f"{seat.lane} {seat.why}" for seat in self._seats)
        hint = f" If it ended while it was starting: {GUARD}." if any("starting" in s.why for s in self._seats) else ""
        raise OracleLostError(
            f"an oracle must be there to score: got none, after {self._gone.get('worker_restarts', 0):.0f} restarts "
            f"({told}).{hint} See what it printed above, or use pool='inline'."
        )

    # What workers say

    def _on_hello(self, seat: _Seat, process: WorkerProcess, message: Message) -> None:
        process.is_ready, process.ready_since = True, time.monotonic()
        process.answered = process.ready_since
        self._has_started = True
        if differ := differences(self._fingerprint, message.fields["fingerprint"]):
            text = (
                f"{seat.lane} must compute as the trainer's process does: got {'; '.join(differ)}; give both the same "
                "environment and data"
            )
            if not self._is_freshest:
                process.refused = "computes otherwise than the trainer's process"
                raise OracleError(text)
            warnings.warn(text, RuntimeWarning)

    def _on_warning(self, seat: _Seat, process: WorkerProcess, message: Message) -> None:
        warnings.warn(f"{seat.lane}: {message.fields['message']}", RuntimeWarning)

    def _on_ranges(self, seat: _Seat, process: WorkerProcess, message: Message) -> None:
        published = self._published.get(message.fields["version"])
        if published is None or published.sequence != message.fields["sequence"]:
            return
        ranges, record = load_tensors(message.payload), published.record
        if not record.ranges:
            published.record = replace(record, ranges=ranges)
        elif any(not torch.equal(ranges[name], record.ranges[name]) for name in ranges) and not self._is_freshest:
            process.refused = "measured other ranges of activations"
            raise OracleError(
                f"workers must measure the same ranges of activations for version {record.version}: got others from "
                f"{seat.lane}; run them on cores of one kind, with the same number of threads"
            )

    def _on_scores(self, seat: _Seat, process: WorkerProcess, message: Message) -> None:
        fields = message.fields
        seat.failures, process.answered = 0, time.monotonic()
        self._totals[seat.lane] = fields["totals"]
        for lane, name, started, seconds, details in fields["spans"]:
            self.timeline.add(Span(lane, name, started, seconds, details))
        said = decode(fields["text"], load_tensors(message.payload))
        log_probabilities = None
        if message.descriptors:
            segment = received(message.descriptors[0], fields["nbytes"])
            segment.check(fields["sequence"], fields["version"] or 0)
            log_probabilities = segment.tensors(fields["layout"])["log_probabilities"]
        if any(job.ticket == fields["ticket"] for job in self._order):  # it may have been forgotten meanwhile
            self._answers[fields["ticket"]] = Scores(
                draw=fields["draw"], version=fields["version"], log_probabilities=log_probabilities, **said
            )

    def _on_failed(self, seat: _Seat, process: WorkerProcess, message: Message) -> None:
        fields = message.fields
        error = _error_of(seat.lane, fields)
        if fields["ticket"] is None:
            process.refused = f"could not start: {fields['error']}: {fields['message']}"
            if not self._has_started:
                raise error
            return  # the task worked before: what it needs may come back until the last restart
        seat.failures, process.answered = 0, time.monotonic()
        if any(job.ticket == fields["ticket"] for job in self._order):
            self._answers[fields["ticket"]] = error


def _close_at_exit(close: "weakref.WeakMethod[Callable[[], None]]", owner: int) -> None:
    """Before `multiprocessing` waits for its processes; not in a process that the user has forked from this one."""
    if os.getpid() == owner and (method := close()) is not None:
        method()


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
KINDS: dict[str, type[Exception]] = {"NotFiniteError": NotFiniteError, "ValueError": ValueError}
"""Errors that a worker's process and this one have in common."""


def _error_of(lane: str, fields: Mapping[str, Any]) -> Exception:
    """The error that a worker told of, as it would have come up here."""
    name, message = fields["error"], fields["message"]
    if name in KINDS:
        error = KINDS[name](message)
        error.add_note(f"in the process of {lane}:\n{fields['trace']}")
        return error
    if name in OUT_OF_MEMORY or "can't allocate memory" in message:
        return OracleError(f"{lane} must have memory enough: got {name}: {message}; lower --oracle-chunk or --gamma")
    return OracleError(f"{lane} failed with {name}: {message}\n\nin its process:\n{fields['trace']}")
