"""Orders and news between the trainer's process and one worker's: JSON and shared memory over an anonymous socket pair.

No pickle: neither side runs what the other says. Neither side waits for the other in the middle of a message, so a
worker that was stopped while it wrote holds nobody up. The socket has no name and no port; it ends with its processes.
A message is text; its tensors lie in segments, whose descriptors are sent along.
"""

import errno
import json
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, get_args

import numpy as np

from infer2train.checkpoint.state import decode, encode
from infer2train.pool.messages import News, Order
from infer2train.pool.segment import Segment
from infer2train.pool.transport import LinkClosedError

_LENGTHS = struct.Struct("<II")
"""Of the text, and of the list of descriptors."""
_MOST_DESCRIPTORS = 2
"""Of one message: a record's weights, and all other tensors."""
_READ_BYTES = 1 << 18
_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""Descriptors that come are not handed on to processes that are started later."""
_AT_LIMIT = "had no room for what it told: this process has as many files open as it may (raise the limit: ulimit -n)"
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (*get_args(Order), *get_args(News))}
_TREES = frozenset({"tree", "ranges", "probe_scores"})
"""Fields that hold tensors."""
_INTEGERS = frozenset({"ids", "seeds"})
"""Fields that are int64 arrays: small, and sent by the trainer at every step, so they go as text. All others are plain
JSON, or a segment."""


class Channel:
    """One end of a socket pair: any thread may send, one receives.

    Args:
        end: the socket, which the channel owns.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._lock = threading.Lock()
        self._outbox: deque[tuple[memoryview, tuple[Segment, ...]]] = deque()
        self._inbox = bytearray()
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    @property
    def is_sending(self) -> bool:
        """Whether something still waits to be sent."""
        return bool(self._outbox)

    def send(self, message: Order | News) -> None:
        """Have a message sent, now or by a later `flush`.

        Raises:
            LinkClosedError: nobody is there.
        """
        text, segments = _packed(message)
        with self._lock:
            self._outbox.append((memoryview(_LENGTHS.pack(len(text), len(segments)) + text), segments))
        self.flush()

    def flush(self) -> None:
        """Send as much as can be sent without waiting.

        Raises:
            LinkClosedError: nobody is there.
        """
        with self._lock:
            while self._outbox:
                data, segments = self._outbox[0]
                descriptors = [segment.descriptor for segment in segments]
                try:
                    sent = socket.send_fds(self._socket, [data], descriptors) if segments else self._socket.send(data)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError as error:
                    if error.errno == errno.ETOOMANYREFS:  # too many descriptors on their way; later
                        return
                    raise LinkClosedError(f"the other side of a channel is gone: {error}") from error
                self._outbox.popleft()
                if sent < len(data):
                    self._outbox.appendleft((data[sent:], ()))

    def receive(self) -> list[Any]:
        """All whole messages that have come; does not wait.

        Raises:
            LinkClosedError: the other side is gone, and so is all that it said; or what it said cannot be taken, since
                this process has as many files open as it may.
        """
        is_closed = False
        try:
            while True:
                data, descriptors, flags, _ = socket.recv_fds(self._socket, _READ_BYTES, _MOST_DESCRIPTORS, _FLAGS)
                self._descriptors.extend(descriptors)
                if flags & socket.MSG_CTRUNC:  # what comes later would be taken for what is missing
                    raise LinkClosedError(_AT_LIMIT)
                if not data:
                    is_closed = True
                    break
                self._inbox += data
        except (BlockingIOError, InterruptedError):
            pass
        except LinkClosedError:
            raise
        except OSError:
            is_closed = True
        try:
            messages = list(iter(self._next, None))
        except OSError as error:  # to map a segment takes a descriptor too
            raise LinkClosedError(_AT_LIMIT) from error
        if is_closed and not messages:
            raise LinkClosedError("hung up")
        return messages

    def _next(self) -> Order | News | None:
        if len(self._inbox) < _LENGTHS.size:
            return None
        nbytes, count = _LENGTHS.unpack_from(self._inbox)
        end = _LENGTHS.size + nbytes
        if len(self._inbox) < end or len(self._descriptors) < count:
            return None
        text = bytes(self._inbox[_LENGTHS.size : end])
        del self._inbox[:end]
        return _unpacked(text, [self._descriptors.popleft() for _ in range(count)])

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._socket.close()
        self._outbox.clear()
        while self._descriptors:
            os.close(self._descriptors.popleft())


def _packed(message: Order | News) -> tuple[bytes, tuple[Segment, ...]]:
    fields = dict(vars(message))
    fields |= {name: fields[name].tobytes().hex() for name in _INTEGERS & fields.keys()}
    tree, tensors = encode({name: fields.pop(name) for name in _TREES & fields.keys()})
    shared = {name: fields.pop(name) for name, value in vars(message).items() if isinstance(value, Segment)}
    if tensors:
        shared[""] = Segment.of(tensors)
    layouts = {name: segment.layout for name, segment in shared.items()}
    return json.dumps([type(message).__name__, fields, tree, layouts]).encode(), tuple(shared.values())


def _unpacked(text: bytes, descriptors: list[int]) -> Order | News:
    kind, fields, tree, layouts = json.loads(text)
    fields |= {n: np.frombuffer(bytes.fromhex(fields[n]), np.int64).copy() for n in _INTEGERS & fields.keys()}
    places = zip(layouts.items(), descriptors, strict=True)
    shared = {name: Segment(layout, descriptor) for (name, layout), descriptor in places}
    for segment in shared.values():
        segment.close()
    message: Order | News = _KINDS[kind](**fields, **decode(tree, shared.pop("", {})), **shared)
    return message


def channel_pair() -> tuple[Channel, socket.socket]:
    """A channel, and the other end's socket to hand to the process that it leads to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours), theirs


def wait_for(channels: Iterable[Channel], seconds: float | None) -> None:
    """Wait until something comes on one of these, until what waits in one can be sent, or so long (None: for ever)."""
    poll = select.poll()
    for channel in channels:
        poll.register(channel, select.POLLIN | (select.POLLOUT if channel.is_sending else 0))
    poll.poll(None if seconds is None else seconds * 1000)
