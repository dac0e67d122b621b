"""Memory that two processes share, without a name: the kernel frees it when the last of them lets go, however it ends.

A segment is written once, by its maker, and read by whoever is handed its descriptor afterwards: who has a descriptor
has a whole segment, and what he writes to it is seen by him alone. Tensors lie in it one behind the other, as its
layout says.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64

Layout = list[list[Any]]
"""[name, dtype, shape] of each tensor, in their order."""


class Segment(Mapping[str, Tensor]):
    """Tensors in shared memory; the memory stays while one of them lives.

    Args:
        layout: of what is in it.
        descriptor: of the file behind it, which the segment owns from now on. Default: a new one, of zeros.
    """

    def __init__(self, layout: Layout, descriptor: int | None = None) -> None:
        places, nbytes = {}, 0
        for name, dtype_name, shape in layout:
            dtype: torch.dtype = getattr(torch, dtype_name)
            places[name] = dtype, shape, nbytes
            nbytes += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        nbytes = max(nbytes, 1)
        self.layout = layout
        self.descriptor = anonymous_file(nbytes) if descriptor is None else descriptor
        self.close = weakref.finalize(self, os.close, self.descriptor)
        """Lets go of the descriptor, and with it of sending the segment on. May be called twice."""
        # What is received is copied where it is written to, so that nobody can damage what others read.
        access = mmap.ACCESS_WRITE if descriptor is None else mmap.ACCESS_COPY
        self.memory = memoryview(mmap.mmap(self.descriptor, nbytes, access=access))
        """All of it, as bytes."""
        self._tensors = {name: _tensor(self.memory, *place) for name, place in places.items()}

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> "Segment":
        """A new segment with room for tensors as large as these, on the CPU and contiguous."""
        return cls([[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()])

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Segment":
        """A new segment with copies of these."""
        segment = cls.like(tensors)
        for name, tensor in tensors.items():
            segment[name].copy_(tensor)
        return segment

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _tensor(memory: memoryview, dtype: torch.dtype, shape: list[int], offset: int) -> Tensor:
    if prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=prod(shape), offset=offset).view(shape)


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
