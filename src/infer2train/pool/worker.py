"""What runs in an oracle's own process: takes records and draws from the channel, answers with scores.

One thread scores; it looks at the channel between chunks, so that a record is prepared (by a second thread) while draws
of the version before are still being scored, and a draw that nobody wants any more is left. A third thread beats. The
process ends when the trainer's does, however that ends.
"""

import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pickle import loads
from queue import SimpleQueue
from socket import socket
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from infer2train.checkpoint.state import encode
from infer2train.draws.addresses import Addresses
from infer2train.observe.timeline import Span, Timeline
from infer2train.oracle.refresher import Refresher
from infer2train.oracle.scorer import Scores, chunks
from infer2train.oracle.snapshot import Record
from infer2train.pool.channel import Channel, ChannelClosedError, Message
from infer2train.pool.fingerprint import fingerprint
from infer2train.pool.pulse import BEAT_SECONDS, Pulse
from infer2train.pool.segment import Segment, received
from infer2train.pool.task import ScoringTask
from infer2train.sources.pipeline import AddressPipeline

PREPARING_SECONDS = 0.02
"""Between looks at what the second thread has done, while there is nothing else to do."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a worker runs; what it has to share with the trainer's process.

    Args:
        lane: its name on the timeline.
        threads: of its arithmetic.
        matmul_precision: torch's setting, as in the trainer's process.
        is_freshest: whether draws are scored by the newest weights at hand, or by the version that they name.
        is_newest_first: whether to begin with the draw that was submitted last. An oracle that cannot keep up would
            otherwise always score the draw that is needed next, and always be late.
        trainer: id of the process that it ends with.
    """

    lane: str
    threads: int
    matmul_precision: str
    is_freshest: bool
    is_newest_first: bool
    trainer: int


@dataclass
class _Job:
    ticket: int
    draw: int
    version: int | None
    pieces: list[Addresses]
    is_put: bool = False
    is_wanted: bool = True


def work(end: socket, task: Any, task_bytes: int, pulse: Any, setting: Setting) -> None:
    """A worker's whole life; the target of its process.

    Args:
        end: of the channel to the trainer's process.
        task: descriptor of the packed `ScoringTask`, as `multiprocessing.reduction.DupFd` sends it.
        task_bytes: its size.
        pulse: descriptor of the shared page, likewise.
        setting: how to run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it reaches the whole terminal
    torch.set_num_threads(setting.threads)
    torch.set_float32_matmul_precision(setting.matmul_precision)
    sign = Pulse(pulse.detach())
    threading.Thread(target=_beat, args=(sign, setting.trainer), daemon=True).start()
    channel = Channel(end)
    try:
        with os.fdopen(task.detach(), "rb") as file:
            unpacked: ScoringTask = loads(os.pread(file.fileno(), task_bytes, 0))  # from our own parent
        worker = Worker(channel, unpacked, sign, setting)
        channel.send("hello", fingerprint=fingerprint(unpacked.reader))
    except Exception as error:
        _say_failed(channel, None, error)
        while channel.is_sending:
            channel.wait(None)
            channel.flush()
        return
    worker.run()


def _beat(pulse: Pulse, trainer: int) -> None:
    while os.getppid() == trainer:
        pulse.beat()
        time.sleep(BEAT_SECONDS)
    os._exit(1)  # the trainer is gone: nobody is left to clean up for


class _Sent(dict[str, Tensor]):
    """A record's tensors, and the number under which they came."""

    sequence: int


class _DroppedError(Exception):
    """The draw that is being scored is not wanted any more."""


class Worker:
    """Scores draws for a process that it shares nothing with but a channel.

    Args:
        channel: to that process.
        task: what is scored.
        pulse: where it says what it does.
        setting: how it runs.
    """

    def __init__(self, channel: Channel, task: ScoringTask, pulse: Pulse, setting: Setting) -> None:
        self._channel, self._task, self._pulse, self._setting = channel, task, pulse, setting
        self._pipeline = AddressPipeline(task.source, like=task.view_workers)
        self._timeline = Timeline()
        self._spans: list[Span] = []
        self._timeline.listen(self._spans.append)
        self._jobs: deque[_Job] = deque()
        self._current: _Job | None = None
        self._news: SimpleQueue[tuple[str, bytes, dict[str, Any]]] = SimpleQueue()
        self._replies = 0
        self._is_stopped = False
        self._refresher: Refresher | None = None
        if task.engine is not None:
            self._refresher = Refresher(
                task.engine,
                task.monitor,
                self._timeline,
                setting.lane,
                # A thread begins with as many threads as the environment says, not with as many as this one has.
                beside=ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(setting.threads,)),
                on_calibrated=self._note_calibrated,
            )
        warnings.showwarning = self._note_warning

    def run(self) -> None:
        """Work until told to stop, or until nobody is there any more."""
        try:
            while not self._is_stopped:
                self._tell_news()
                if self._jobs:
                    self._do(self._jobs.pop() if self._setting.is_newest_first else self._jobs.popleft())
                    continue
                self._pulse.enter("idle")
                self._channel.wait(PREPARING_SECONDS if self._is_preparing() else None)
                self._listen()
        except ChannelClosedError:
            pass
        finally:
            self._pipeline.close()
            self._task.reader.close()
        os._exit(0)  # without waiting for a program that is still being prepared

    def _is_preparing(self) -> bool:
        return self._refresher is not None and self._refresher.is_preparing()

    # What the trainer's process says

    def _listen(self) -> None:
        self._channel.flush()
        for message in self._channel.receive():
            getattr(self, f"_on_{message.kind}")(message)

    def _on_record(self, message: Message) -> None:
        self._pulse.enter("taking a record")
        assert self._refresher is not None
        fields = message.fields
        segment = received(message.descriptors[0], fields["nbytes"])
        segment.check(fields["sequence"], fields["version"])
        tensors = _Sent(segment.tensors(fields["layout"]))
        tensors.sequence = fields["sequence"]
        segment.close()
        ranges = load_tensors(message.payload) if message.payload else {}
        scores = None if fields["probe_scores"] is None else torch.tensor(fields["probe_scores"])
        self._refresher.publish(Record(fields["version"], tensors, ranges, scores))

    def _on_draw(self, message: Message) -> None:
        fields = message.fields
        ids, seeds = np.frombuffer(message.payload, dtype=np.int64).reshape(2, -1)
        pieces = chunks(Addresses(ids.copy(), seeds.copy()), self._task.scorer.chunk)
        self._jobs.append(_Job(fields["ticket"], fields["draw"], fields["version"], pieces))

    def _on_cancel(self, message: Message) -> None:
        for job in [job for job in self._jobs if job.ticket == message.fields["ticket"]]:
            job.is_wanted = False
            if not job.is_put:
                self._jobs.remove(job)

    def _on_forget(self, message: Message) -> None:
        self._jobs.clear()
        self._pipeline.forget()
        if self._current is not None:
            self._current.is_wanted = False

    def _on_retire(self, message: Message) -> None:
        if self._refresher is not None:
            self._refresher.retire(message.fields["version"])

    def _on_stop(self, message: Message) -> None:
        self._is_stopped = True
        self._pipeline.close()
        self._on_forget(message)

    # One draw

    def _do(self, job: _Job) -> None:
        self._current = job
        try:
            scores = self._scores(job)
        except (_DroppedError, ChannelClosedError):
            pass
        except Exception as error:
            self._pipeline.forget()
            for waiting in self._jobs:
                waiting.is_put = False
            if job.is_wanted:
                _say_failed(self._channel, job.ticket, error)
        else:
            self._answer(job, scores)
        finally:
            self._current = None

    def _scores(self, job: _Job) -> Scores:
        self._put(job)
        if not job.is_wanted:
            for _ in job.pieces:
                self._pipeline.get()
            raise _DroppedError
        if job.version is not None:
            self._use(job.version)
        details = {"draw": job.draw, "version": job.version}
        watched = self._timeline.watch(self._views(job), self._setting.lane, "views", "forward", **details)
        return self._task.scorer.score(self._task.engine, job.draw, watched)

    def _put(self, job: _Job) -> None:
        """Have the views of this draw made, and of those after it where there are processes for that."""
        for waiting in (job,) if self._setting.is_newest_first else (job, *self._jobs):
            if not waiting.is_put and (waiting is job or self._pipeline.waiting < self._pipeline.depth):
                waiting.is_put = True
                for piece in waiting.pieces:
                    self._pipeline.put(piece)

    def _use(self, version: int) -> None:
        assert self._refresher is not None
        if self._setting.is_freshest:
            ready = self._refresher.newest_ready()
            if ready is None and self._refresher.engine.version is not None:
                return  # what is in use is the newest that could be used at once
            # A draw may wait longer than its version is kept.
            version = max(self._refresher.records) if ready is None else ready
        self._pulse.enter("refreshing")
        self._refresher.use(version)

    def _views(self, job: _Job) -> Iterator[Any]:
        for _ in job.pieces:
            self._listen()
            if not job.is_wanted:
                raise _DroppedError
            self._pulse.enter("making views")
            batch = self._pipeline.get()
            self._pulse.enter("scoring")
            yield batch

    # What it answers

    def _answer(self, job: _Job, scores: Scores) -> None:
        self._pulse.enter("answering")
        self._tell_news()
        text, tensors = encode({"targets": scores.targets, "values": scores.values})
        fields: dict[str, Any] = {"ticket": job.ticket, "draw": scores.draw, "version": scores.version, "text": text}
        fields["totals"] = {} if self._refresher is None else self._refresher.totals()
        fields["spans"] = [[s.lane, s.name, s.started, s.seconds, s.details] for s in self._spans]
        self._spans.clear()
        segment = None
        if scores.log_probabilities is not None:
            self._replies += 1
            segment, layout, room = Segment.with_room({"log_probabilities": scores.log_probabilities})
            room["log_probabilities"].copy_(scores.log_probabilities)
            segment.seal(self._replies, scores.version or 0)
            fields |= {"sequence": self._replies, "nbytes": segment.nbytes, "layout": layout}
        descriptors = () if segment is None else (segment.descriptor,)
        self._channel.send("scores", save_tensors(tensors), descriptors, **fields)

    # What other threads have for the trainer's process; only one may send.

    def _note_calibrated(self, record: Record) -> None:
        assert isinstance(record.tensors, _Sent)
        ranges = {name: tensor.contiguous() for name, tensor in record.ranges.items()}
        fields = {"sequence": record.tensors.sequence, "version": record.version}
        self._news.put(("ranges", save_tensors(ranges), fields))

    def _note_warning(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, RuntimeWarning | UserWarning):
            self._news.put(("warning", b"", {"message": str(message)}))

    def _tell_news(self) -> None:
        while not self._news.empty():
            kind, payload, fields = self._news.get()
            self._channel.send(kind, payload, **fields)


def _say_failed(channel: Channel, ticket: int | None, error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))
    notes = "; ".join(getattr(error, "__notes__", ()))
    message = f"{error}{f' ({notes})' if notes else ''}"
    channel.send("failed", ticket=ticket, error=type(error).__name__, message=message, trace=trace)
