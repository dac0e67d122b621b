"""A pool of workers: who does which draw, what a worker is told when it is replaced, and what it told in time.

Work is idempotent and its outcome a pure function of (addresses, version), so a worker that is killed, stopped or hangs
is replaced, gets the records again, and does again what it had not answered: the trainer sees only that it waits. How
workers are started and reached is the transport's; when one has to be replaced, its seat's.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import assert_never

import torch
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.observe.timeline import Span
from infer2train.oracle.snapshot import Record
from infer2train.pool.fingerprint import differences, fingerprint
from infer2train.pool.jobs import Job, Jobs
from infer2train.pool.messages import (
    Cancel,
    Done,
    Failed,
    Forget,
    Measured,
    News,
    OracleError,
    Order,
    Ready,
    Retire,
    Stop,
    Take,
    Warned,
)
from infer2train.pool.pool import OracleLostError, Pool, at_exit, require_published
from infer2train.pool.seat import Patience, Seat
from infer2train.pool.task import Answer, Task
from infer2train.pool.transport import Post, Transport

LOOK_SECONDS = 0.02
"""Between two looks at the workers while the trainer waits for an answer."""
JOIN_SECONDS = 5.0
"""Given to workers that were asked to stop, before they are ended."""


class SupervisedPool(Pool):
    """Has draws done by workers.

    Args:
        task: what they do; its engine is not used here again.
        transport: to them, which the pool owns.
        posts: of the workers.
        queue_depth: draws that are submitted ahead.
        patience: with workers.
    """

    lost_hint = ""
    """What its user may have done wrong where workers end while they start."""
    place_hint = ""
    """What its user can do where there is no place for a worker."""
    alike_hint = "give both the same environment and data"
    """What its user can do where a worker computes otherwise."""

    def __init__(
        self,
        task: Task,
        transport: Transport,
        posts: Sequence[Post],
        *,
        queue_depth: int = 4,
        patience: Patience | None = None,
    ) -> None:
        super().__init__()
        self.queue_depth = queue_depth
        self._transport, self._patience = transport, patience or Patience()
        self._has_engine, self._is_freshest = task.engine is not None, any(post.is_freshest for post in posts)
        self._fingerprint = fingerprint(task.reader)
        task.reader.close()
        self._seats = [Seat(post, self._patience) for post in posts]
        self._published: dict[int, tuple[int, Record]] = {}
        self._numbers, self._jobs = 0, Jobs()
        self._seconds = {"views": 0.0, "scoring": 0.0, "publishing": 0.0}
        self._totals: dict[str, dict[str, float]] = {}
        self._gone: dict[str, float] = {}
        self._is_closed, self._has_started = False, False
        self._placeless_since: float | None = None
        self._stay_at_exit = at_exit(self.close)
        for seat in self._seats:
            self._start(seat)

    # The contract

    @property
    def records(self) -> Mapping[int, Record]:
        return {version: record for version, (_, record) in self._published.items()}

    def room(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        started = perf_counter()
        room = self._transport.room(tensors)
        self._seconds["publishing"] += perf_counter() - started
        return room

    def publish(self, record: Record) -> None:
        if not self._has_engine:
            return
        started = perf_counter()
        carried = self._transport.carried(record.tensors)
        self._numbers += 1
        record = record if carried is record.tensors else replace(record, tensors=carried)
        self._published[record.version] = self._numbers, record
        for seat in self._seats:
            self._send_record(seat, self._numbers, record)
        self._seconds["publishing"] += perf_counter() - started
        self._look(0.0)

    def retire(self, version: int) -> None:
        for ticket in self._jobs.cancelled_asides(below=version):  # draws of it there are none
            self._tell(Cancel(ticket))
        self._published = {v: published for v, published in self._published.items() if v >= version}
        self._tell(Retire(version))

    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        require_published(draw, version, self.records)
        self._assign(self._jobs.draw(draw, addresses, version))
        self._look(0.0)

    def is_ready(self, draw: int) -> bool:
        self._look(0.0)
        return self._jobs.is_answered(draw)

    def collect(self, draw: int) -> Answer:
        self._jobs.require_next(draw)
        started = perf_counter()
        try:
            while not self._jobs.is_answered(draw):
                self._look(LOOK_SECONDS)
                if not self._jobs.is_answered(draw):
                    self._require_workers()
        finally:
            self._seconds["scoring"] += perf_counter() - started
        _, answer = self._jobs.taken(draw)
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    def cancel(self, draw: int) -> None:
        ticket, _ = self._jobs.taken(draw)
        self._tell(Cancel(ticket))

    def seconds(self) -> dict[str, float]:
        return dict(self._seconds)

    # What may wait

    @property
    def num_asides(self) -> int:
        """Asides that are not answered, or whose answers were not taken."""
        return self._jobs.num_asides()

    def aside(self, number: int, addresses: Addresses, version: int) -> None:
        """Ask for something that workers do only while no draw waits for them, and never wait for it.

        Args:
            number: by which its answer is known, of any order.
            addresses: of one chunk, since a draw that comes meanwhile waits for the whole of it.
            version: in use, or newer: workers do not go back without need.
        """
        require_published(number, version, self.records)
        self._give_aside(self._jobs.aside(number, addresses, version))

    def answered_asides(self) -> list[Answer]:
        """What came of those that were answered since the last call; waits for nobody.

        Raises:
            Exception: what failed in a worker.
        """
        self._look(0.0)
        return self._jobs.taken_asides()

    def cancel_asides(self) -> None:
        """Do without those that were not taken."""
        for ticket in self._jobs.cancelled_asides():
            self._tell(Cancel(ticket))

    def _give_aside(self, job: Job) -> None:
        """Give it to the worker that has the fewest; nobody does it where nobody is left."""
        if seats := self._there() or self._sitting():
            job.seat = min(seats, key=self._jobs.num_asides)
            job.seat.tell(job.order)

    def totals(self) -> dict[str, float]:
        total = dict(self._gone)
        for told in self._totals.values():
            _add(total, told)
        _add(total, {"oracle_available_seconds": sum(seat.ready_seconds() for seat in self._seats)})
        return total

    def forget(self) -> None:
        self._jobs.forget()
        self._tell(Forget())

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._stay_at_exit()
        self._tell(Stop())
        deadline = time.monotonic() + JOIN_SECONDS
        for seat in self._sitting():
            assert seat.link is not None
            # One that still starts has nothing to put away, and would not hear of it.
            seat.link.end(patience_seconds=max(0.01, deadline - time.monotonic()) if seat.is_ready else 0.0)
            seat.link = None
        self._jobs.forget()
        self._published.clear()
        self._transport.close()

    # Workers

    def workers(self) -> dict[str, int]:
        """The processes that there are: lane -> process id, of the machine that it runs on."""
        return {seat.post.lane: seat.link.pid for seat in self._seats if seat.link is not None and seat.is_there}

    def phases(self) -> dict[str, str]:
        """What each of them is doing right now."""
        return {seat.post.lane: seat.link.phase for seat in self._seats if seat.link is not None and seat.is_there}

    def _sitting(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.link is not None]

    def _there(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.is_there]

    def _start(self, seat: Seat) -> None:
        """A new worker in a seat."""
        seat.take(self._transport.start(seat.post))
        self._receive(seat)

    def _receive(self, seat: Seat) -> None:
        """Tell one who comes to a seat all that the one before it was told and had not answered."""
        if not seat.comes():
            return
        for number, record in self._published.values():
            self._send_record(seat, number, record)
        for job in self._jobs.owed(seat):
            self._send_job(seat, job)
        for job in self._jobs.owed_asides(seat):
            seat.tell(job.order)

    def _assign(self, job: Job) -> None:
        """Give a draw to the worker that has the fewest; one who still waits for a place gets it with the place."""
        if not self._sitting():
            self._raise_lost()
        self._send_job(min(self._there() or self._sitting(), key=lambda seat: len(self._jobs.owed(seat))), job)

    def _send_job(self, seat: Seat, job: Job) -> None:
        job.begin(seat)
        seat.tell(job.order)

    def _send_record(self, seat: Seat, number: int, record: Record) -> None:
        seat.tell(Take(number, record.version, record.tensors, dict(record.ranges), record.probe_scores))

    def _tell(self, order: Order) -> None:
        for seat in self._seats:
            seat.tell(order)

    # Watching them

    def _look(self, seconds: float) -> None:
        """Take in what workers say, for so long at most, and replace those that will say nothing any more."""
        self._transport.wait([seat.link for seat in self._seats if seat.link is not None], seconds)
        for seat in self._seats:
            for told in seat.heard():
                self._hear(seat, told)
        for seat in self._sitting():
            self._receive(seat)
            first = next(iter(self._jobs.owed(seat)), None)
            owed, since = (None, 0.0) if first is None else (first.order.draw, first.since)
            if why := seat.why_replaced(owed, since):
                self._replace(seat, why)
        self._pass_on()

    def _pass_on(self) -> None:
        """Have what workers owe that wait for a place done by those that have one."""
        now, there = time.monotonic(), self._there()
        self._placeless_since = None if there else self._placeless_since or now
        waiting = [seat for seat in self._sitting() if not seat.is_there] if there else []
        for job in [job for seat in waiting for job in self._jobs.owed(seat)]:
            self._assign(job)
        for job in [job for seat in waiting for job in self._jobs.owed_asides(seat)]:
            self._give_aside(job)

    def _replace(self, seat: Seat, why: str) -> None:
        assert seat.link is not None
        # A script or a task that ends the first worker while it starts ends the next one too.
        is_hopeless = not self._has_started and seat.link.ended_by_itself()
        _add(self._gone, self._totals.pop(seat.post.lane, {}))
        _add(self._gone, {"oracle_available_seconds": seat.ready_seconds()})
        name, link, seat.link = seat.name, seat.link, None
        seat.failures, seat.why = seat.failures + 1, why
        is_last = seat.failures > self._patience.restarts
        is_elsewhere = is_last and seat.refused is not None and self._transport.avoid(link)
        link.end()
        is_again = (is_elsewhere or not is_last) and not is_hopeless
        self.timeline.add(Span(seat.post.lane, "lost", perf_counter(), 0.0, {"why": why, "again": is_again}))
        if is_again:
            _add(self._gone, {"worker_restarts": 1})
            seat.failures = 0 if is_elsewhere else seat.failures
            where = ", on another machine than this one" if is_elsewhere else ""
            warnings.warn(f"{name} {why}; it is started again{where}", RuntimeWarning)
            self._start(seat)
            return
        times = f", {seat.failures} times in a row" if seat.failures > 1 else ""
        warnings.warn(f"{name} {why}{times}; it is given up", RuntimeWarning)
        if self._sitting():
            for job in self._jobs.owed(seat):
                self._assign(job)
            for job in self._jobs.owed_asides(seat):
                self._give_aside(job)

    def _require_workers(self) -> None:
        if not self._sitting():
            self._raise_lost()
        since, patience = self._placeless_since, self._patience.starting_seconds
        if since is not None and time.monotonic() - since > patience:
            raise OracleLostError(
                f"an oracle must have a place to run: got none within {patience:g} s "
                f"({'; '.join(seat.name for seat in self._sitting())}). {self.place_hint}"
            )

    def _raise_lost(self) -> None:
        told = "; ".join(f"{seat.post.lane} {seat.why}" for seat in self._seats)
        is_starting = any("starting" in seat.why for seat in self._seats)
        hint = f" If it ended while it was starting: {self.lost_hint}." if is_starting and self.lost_hint else ""
        raise OracleLostError(
            f"an oracle must be there to score: got none, after {self._gone.get('worker_restarts', 0):.0f} restarts "
            f"({told}).{hint} See what it printed above, or use pool='inline'."
        )

    # What workers say

    def _hear(self, seat: Seat, told: News) -> None:
        match told:
            case Ready():
                self._note_ready(seat, told)
            case Warned():
                warnings.warn(f"{seat.post.lane}: {told.message}", RuntimeWarning)
            case Measured():
                self._note_ranges(seat, told)
            case Done():
                self._totals[seat.post.lane] = told.totals
                for span in told.as_spans():
                    self.timeline.add(span)
                self._jobs.note(told.ticket, Answer(told.draw, told.version, told.tree))
            case Failed():
                self._note_failure(seat, told)
            case _:
                assert_never(told)

    def _note_ready(self, seat: Seat, told: Ready) -> None:
        self._has_started = True
        if differ := differences(self._fingerprint, told.fingerprint):
            text = f"{seat.name} must compute as the trainer's process does: got {'; '.join(differ)}; {self.alike_hint}"
            if not self._is_freshest:
                seat.refused = "computes otherwise than the trainer's process"
                if not any(other.is_ready and other.refused is None for other in self._seats):
                    raise OracleError(text)
                seat.failures = self._patience.restarts  # there it would do so again
            warnings.warn(text, RuntimeWarning)

    def _note_ranges(self, seat: Seat, told: Measured) -> None:
        number, record = self._published.get(told.version, (None, None))
        if record is None or number != told.number:
            return
        if not record.ranges:
            self._published[told.version] = told.number, replace(record, ranges=told.ranges)
        elif not self._is_freshest and any(not torch.equal(told.ranges[n], record.ranges[n]) for n in told.ranges):
            seat.refused = "measured other ranges of activations"
            raise OracleError(
                f"workers must measure the same ranges of activations for version {record.version}: got others from "
                f"{seat.name}; run them on cores of one kind, with the same number of threads"
            )

    def _note_failure(self, seat: Seat, told: Failed) -> None:
        error = told.as_error(seat.post.lane)
        if told.ticket is not None:
            self._jobs.note(told.ticket, error)
            return
        seat.refused = f"could not start: {told.error}: {told.message}"
        if not self._has_started:
            raise error
        # Else the task worked before: what it needs may come back until the last restart.


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value
