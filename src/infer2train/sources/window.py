"""Windows of a stream in files: items that were read once, at ids, for every process that makes views of them.

A map-style data set to whoever reads it, so that `Replay` makes views of a stream's items as of any others. The files
are written by `streaming`. A process maps the windows that it reads, and unpickles an item each time it is wanted:
whoever changes one in place changes a copy of its own.
"""

import mmap
import pickle
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

PLACE_BITS = 40
"""Of an id; the pass stands above them."""
HEAD = "head"
"""The file of a run's first items, which are kept."""
AS_ARRAYS = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bool, torch.uint8}
    | {torch.int64, torch.int32, torch.int16, torch.int8}
)
"""Tensors that NumPy can hold: its pickles are written three times and read ten times as fast as torch's."""
_OPENED = 3
"""Files that a process keeps mapped: two windows, and the head."""


def item_id(number: int, place: int) -> int:
    """The id of an item: which pass of the stream, counted from 0, and its place in that.

    Example:
        >>> pass_and_place(item_id(2, 7))
        (2, 7)
    """
    return number << PLACE_BITS | place


def pass_and_place(sample_id: int) -> tuple[int, int]:
    """What `item_id` made an id of."""
    return sample_id >> PLACE_BITS, sample_id & ((1 << PLACE_BITS) - 1)


class WindowItems(Dataset[Any]):
    """The items of a stream that are there: the head, and those of the windows that were written.

    Args:
        folder: of the files.
        width: of a window (items).
        head: items that are kept for the whole run, from id 0.
    """

    def __init__(self, folder: Path, width: int, head: int) -> None:
        self._folder, self._width, self._head = folder, width, head
        self._opened: dict[str, _Opened] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __len__(self) -> int:
        """Of the head: those that may be read at any time."""
        return self._head

    def __getitem__(self, sample_id: int) -> Any:
        if sample_id < self._head:
            return self._file(HEAD).item(sample_id)
        number, place = pass_and_place(sample_id)
        at = place % self._width
        return self._file(window_name(item_id(number, place - at))).item(at)

    def _file(self, name: str) -> "_Opened":
        if name not in self._opened:
            while len(self._opened) >= _OPENED:
                self._opened.pop(next(oldest for oldest in self._opened if oldest != HEAD))
            self._opened[name] = _Opened(self._folder / name)
        return self._opened[name]


def window_name(first: int) -> str:
    """The file of the window that begins with this id."""
    return f"{first}.window"


class _Opened:
    """A file of items, mapped: their pickles, and behind them where each begins and how many there are."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.frombuffer(self._bytes, np.int64, 1, len(self._bytes) - 8)[0])
        self._offsets: Int64[np.ndarray, " n"] = np.frombuffer(
            self._bytes, np.int64, count + 1, len(self._bytes) - 8 * (count + 2)
        )

    def item(self, at: int) -> Any:
        return pickle.loads(self._bytes[self._offsets[at] : self._offsets[at + 1]])  # of our own process, or its child


def write_items(path: Path, items: Iterable[Any]) -> int:
    """Write a file of items, one after the other; it is there whole or not at all.

    Returns:
        How many there were.

    Raises:
        ValueError: an item cannot be pickled.
    """
    offsets, partial = [0], path.with_suffix(".partial")
    with partial.open("wb") as file:
        for item in items:
            offsets.append(offsets[-1] + file.write(_pickled(item)))
        padding = -offsets[-1] % 8
        file.write(bytes(padding))
        file.write(np.array([*offsets, len(offsets) - 1], dtype=np.int64).tobytes())
    partial.replace(path)
    return len(offsets) - 1


def _pickled(item: Any) -> bytes:
    written = BytesIO()
    try:
        _Pickler(written, pickle.HIGHEST_PROTOCOL).dump(item)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            "items of a stream must be picklable, since they wait in a file for those who make views of them: got "
            f"{type(error).__name__}: {error}; make the stream give bytes, numbers, arrays or tensors, and turn them "
            "into objects in transform="
        ) from error
    return written.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is torch.Tensor and obj.device.type == "cpu" and obj.dtype in AS_ARRAYS and not obj.requires_grad:
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented
