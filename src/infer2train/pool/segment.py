"""Memory that two processes share, without a name: the kernel frees it when the last of them lets go, however it ends.

A segment is written once, by its maker, and read by whoever was handed its descriptor. It begins with a header

    magic, sequence number, version, payload bytes, CRC-32 of the payload

that is written last, so that a reader knows a whole segment from one whose writer was killed. Behind it lie the
tensors, at the places that its `layout` (JSON) gives. What the numbers mean is up to whoever uses it.
"""

import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

_HEADER = struct.Struct("<8sqqqq")
_MAGIC = b"i2tshare"
_ALIGNMENT = 64
LARGEST_BYTES = 1 << 38
"""A layout that asks for more than this is no layout."""

Layout = list[list[Any]]
"""[name, dtype, shape, offset] of each tensor."""


class SegmentError(RuntimeError):
    """A segment does not hold what it should."""


class Segment:
    """A piece of shared memory; close it, or let it go.

    Args:
        descriptor: of the file behind it, which the segment owns from now on.
        nbytes: its size.
    """

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.descriptor, self.nbytes = descriptor, nbytes
        self._memory = memoryview(mmap.mmap(descriptor, nbytes))

    @classmethod
    def with_room(cls, tensors: Mapping[str, Tensor]) -> "tuple[Segment, Layout, dict[str, Tensor]]":
        """A new segment, its layout, and tensors in it as large as these, on the CPU and contiguous."""
        layout: Layout = []
        end = _HEADER.size
        for name, tensor in tensors.items():
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            layout.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start])
            end = start + tensor.numel() * tensor.element_size()
        segment = cls(anonymous_file(end), end)
        return segment, layout, segment.tensors(layout)

    def tensors(self, layout: Layout) -> dict[str, Tensor]:
        """The tensors in it, as views of the shared memory.

        Raises:
            SegmentError: the layout reaches beyond the segment, or names no dtype.
        """
        return {str(name): self._tensor(dtype, shape, offset) for name, dtype, shape, offset in layout}

    def _tensor(self, dtype_name: str, shape: list[int], offset: int) -> Tensor:
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype) or not all(isinstance(n, int) and n >= 0 for n in (offset, *shape)):
            raise SegmentError(f"a layout gives dtype, shape and offset: got {dtype_name!r}, {shape}, {offset}")
        count = prod(shape)
        if offset < _HEADER.size or offset + count * dtype.itemsize > self.nbytes:
            raise SegmentError(f"a tensor must lie in its segment: got {shape} of {dtype} at {offset} of {self.nbytes}")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(shape)

    def seal(self, sequence: int, version: int) -> None:
        """Say that all is written."""
        payload = self._memory[_HEADER.size :]
        self._memory[: _HEADER.size] = _HEADER.pack(_MAGIC, sequence, version, len(payload), zlib.crc32(payload))

    def check(self, sequence: int, version: int) -> None:
        """Refuse a segment that is not whole, or not the one expected.

        Raises:
            SegmentError: it is not.
        """
        magic, *found, checksum = _HEADER.unpack(self._memory[: _HEADER.size])
        expected = [sequence, version, self.nbytes - _HEADER.size]
        if magic != _MAGIC or found != expected:
            raise SegmentError(f"shared memory must hold {expected} (sequence, version, bytes): got {magic!r} {found}")
        if zlib.crc32(self._memory[_HEADER.size :]) != checksum:
            raise SegmentError(f"shared memory {sequence} of version {version} was damaged: its checksum does not fit")

    def close(self) -> None:
        """Let go of the descriptor; the memory stays while a tensor in it lives. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.close()


def anonymous_file(nbytes: int) -> int:
    """A descriptor of so many bytes of zeros, in memory where the system can, that no folder lists.

    Raises:
        MemoryError: there is not so much.
    """
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("infer2train", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.truncate(descriptor, nbytes)
    except OSError as error:
        raise MemoryError(f"shared memory of {nbytes} bytes is not to be had: {error}") from error
    return descriptor


def received(descriptor: int, nbytes: int) -> Segment:
    """The segment behind a descriptor that another process sent.

    Raises:
        SegmentError: it is smaller than it was said to be.
    """
    if not _HEADER.size <= nbytes <= LARGEST_BYTES or os.fstat(descriptor).st_size < nbytes:
        size = os.fstat(descriptor).st_size
        os.close(descriptor)
        raise SegmentError(f"a segment must be as large as it was said to be: got {size} bytes instead of {nbytes}")
    return Segment(descriptor, nbytes)
