"""Messages between the trainer's process and one worker: JSON, bytes and descriptors over an anonymous socket pair.

No pickle: neither side runs what the other says. Neither side waits for the other in the middle of a message, so a
worker that was stopped while it wrote holds nobody up. The socket has no name and no port; it ends with its processes.
"""

import errno
import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LENGTHS = struct.Struct("<III")
LARGEST_HEADER, LARGEST_PAYLOAD, MOST_DESCRIPTORS = 1 << 26, 1 << 31, 4
"""Bytes, bytes, count: what says more is no message of ours."""
_READ_BYTES = 1 << 18
_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""Descriptors that come are not handed on to processes that are started later."""


class ChannelClosedError(ConnectionError):
    """The other side is gone."""


@dataclass(frozen=True)
class Message:
    """What one side says.

    Args:
        kind: of message.
        fields: JSON types.
        payload: bytes that belong to it.
        descriptors: of files, which whoever receives it owns.
    """

    kind: str
    fields: dict[str, Any]
    payload: bytes = b""
    descriptors: tuple[int, ...] = ()


class Channel:
    """One end of a socket pair; used by one thread for sending and by one for receiving.

    Args:
        end: the socket, which the channel owns.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._outbox: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._inbox = bytearray()
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    @property
    def is_sending(self) -> bool:
        """Whether something still waits to be sent."""
        return bool(self._outbox)

    def send(self, kind: str, payload: bytes = b"", descriptors: tuple[int, ...] = (), **fields: Any) -> None:
        """Have a message sent, now or by a later `flush`; descriptors are copied at once.

        Raises:
            ChannelClosedError: nobody is there.
        """
        header = json.dumps({"kind": kind, **fields}).encode()
        lengths = _LENGTHS.pack(len(header), len(payload), len(descriptors))
        # A copy of each descriptor, since the caller may close its own before it is sent.
        copies = tuple(os.dup(descriptor) for descriptor in descriptors)
        self._outbox.append((memoryview(lengths + header + payload), copies))
        self.flush()

    def flush(self) -> None:
        """Send as much as can be sent without waiting.

        Raises:
            ChannelClosedError: nobody is there.
        """
        while self._outbox:
            data, descriptors = self._outbox[0]
            try:
                sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # too many descriptors on their way; later
                    return
                raise ChannelClosedError(f"the other side of a channel is gone: {error}") from error
            for descriptor in descriptors:
                os.close(descriptor)
            if sent == len(data):
                self._outbox.popleft()
            else:
                self._outbox[0] = data[sent:], ()

    def wait(self, seconds: float | None) -> None:
        """Wait until something comes, until what is waiting can be sent, or so long (None: for ever)."""
        wait_for([self], seconds)

    def receive(self) -> list[Message]:
        """All whole messages that have come; does not wait.

        Raises:
            ChannelClosedError: the other side is gone, and so is all that it said.
            ValueError: it says what is no message.
        """
        is_closed = False
        try:
            while True:
                data, descriptors, _, _ = socket.recv_fds(self._socket, _READ_BYTES, MOST_DESCRIPTORS, _FLAGS)
                self._descriptors.extend(descriptors)
                if not data:
                    is_closed = True
                    break
                self._inbox += data
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            is_closed = True
        messages = list(iter(self._next, None))
        if is_closed and not messages:
            raise ChannelClosedError("the other side of a channel is gone")
        return messages

    def _next(self) -> Message | None:
        if len(self._inbox) < _LENGTHS.size:
            return None
        header_bytes, payload_bytes, count = _LENGTHS.unpack_from(self._inbox)
        if header_bytes > LARGEST_HEADER or payload_bytes > LARGEST_PAYLOAD or count > MOST_DESCRIPTORS:
            raise ValueError(f"a message must be small: got {header_bytes} and {payload_bytes} bytes, {count} files")
        begin, end = _LENGTHS.size, _LENGTHS.size + header_bytes + payload_bytes
        if len(self._inbox) < end or len(self._descriptors) < count:
            return None
        fields = json.loads(bytes(self._inbox[begin : begin + header_bytes]))
        payload = bytes(self._inbox[begin + header_bytes : end])
        del self._inbox[:end]
        descriptors = tuple(self._descriptors.popleft() for _ in range(count))
        return Message(fields.pop("kind"), fields, payload, descriptors)

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._socket.close()
        for _, descriptors in self._outbox:
            for descriptor in descriptors:
                os.close(descriptor)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._outbox.clear()
        self._descriptors.clear()


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
