"""The order of an epoch over a stream: one pass, batch by batch as the items come, known a window ahead.

Whereas a sampler is asked for an epoch at once (`order`), here the next window is read while draws use up the one
before. What was used up is deleted, so that two windows are there at most. Of several ranks each reads a share of its
own and makes draws of its own; they agree, a window at a time, on how many.
"""

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader, IterableDataset

from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.mining import Mining
from infer2train.loader.admission import check_stream
from infer2train.loader.ranks import Ranks
from infer2train.loader.shares import Shares
from infer2train.sources.pipeline import AddressPipeline, ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.streaming import Filled, HeadReading, Mark, StreamReading
from infer2train.sources.window import WindowItems, item_id, window_name

WINDOW = 2048
"""Items in a window, where nobody says how many."""


class Passes:
    """The passes of a stream; a sequence of the ids of the draws of the one under way, as far as they are known.

    Args:
        dataloader: the user's, over an iterable data set.
        mining: the settings.
        has_transform: whether items are transformed after they were read.

    Raises:
        ValueError: the stream is empty, does not begin anew alike, or cannot be mined by this method.
    """

    def __init__(self, dataloader: "DataLoader[Any]", mining: Mining, *, has_transform: bool) -> None:
        check_stream(mining, has_transform=has_transform)
        assert dataloader.batch_size is not None
        self._batch_size, self._drop_last, self._seed = dataloader.batch_size, dataloader.drop_last, mining.seed
        self._dataset, self._loader, rank = dataloader.dataset, dataloader, Ranks.here().rank
        self.seed = int(seeds(mining.seed, Purpose.RANK, slot=rank)) if rank else mining.seed
        """Of this rank's draws. The stream itself is read with the run's, which may be what ranks share it out by."""
        wanted = mining.window or WINDOW
        self.width = -(-wanted // self._batch_size) * self._batch_size
        """Items in a window: whole batches."""
        self._workers = _reader_workers(dataloader)
        self._folder = Path(tempfile.mkdtemp(prefix="infer2train-"))
        self._finalizer = weakref.finalize(self, _removed, self._folder, os.getpid())
        with_head = HeadReading(self._stream, self._folder, self.width, self._seed)
        reader = Reader(with_head, self._workers)
        try:
            head = reader.batch(Addresses(np.zeros(1, np.int64), np.zeros(1, np.int64)))
        finally:
            reader.close()
        if head == 0:
            raise ValueError("a stream needs at least one item: got none; look at what it is made from")
        self._items = WindowItems(self._folder, self.width, head)
        self._mark: Mark | None = None
        self._pipeline = self._new_pipeline()
        self._number, self._count, self._start = 0, 0, 0
        self._marks: dict[int, Mark] = {}
        self._is_whole = False
        self._shares = Shares(Ranks.here(), self.draws_per_window)

    @property
    def _stream(self) -> Iterable[Any]:
        assert isinstance(self._dataset, IterableDataset)
        return self._dataset

    @property
    def draws_per_window(self) -> int:
        return self.width // self._batch_size

    def readable(self) -> "DataLoader[Any]":
        """The user's loader over the items that were read, by their ids."""
        of = self._loader
        return DataLoader(
            self._items,
            batch_size=of.batch_size,
            collate_fn=of.collate_fn,
            drop_last=of.drop_last,
            num_workers=of.num_workers,
            pin_memory=of.pin_memory,
            timeout=of.timeout,
            multiprocessing_context=of.multiprocessing_context,
            prefetch_factor=of.prefetch_factor,
            persistent_workers=of.persistent_workers,
        )

    # The pass under way

    def begin(self, number: int, position: int) -> None:
        """Begin a pass, or go on with it.

        Args:
            number: of the pass.
            position: of the first draw that is wanted; the mark that was loaded is near it.

        Raises:
            ValueError: the pass has no batch at all, or another one than before the resume.
        """
        self._pipeline.forget()
        for path in self._folder.glob("*.window"):
            path.unlink()
        self._number, self._is_whole, self._marks = number, False, {}
        self._shares.begin()
        mark = self._mark
        is_near = mark is not None and mark.number == number and mark.place <= position * self._batch_size
        self._count = mark.place if mark is not None and is_near else self._window_of(position)
        self._start = self._count // self._batch_size
        self.reach(position)
        self._shares.require_apart(next((mark.digest for mark in self._marks.values()), []))
        if len(self) == 0:
            where = "" if self._known == 0 else ", of which another rank's share has none"
            raise ValueError(
                f"an epoch needs at least one batch: got none from a stream of {self._count} items at batch_size="
                f"{self._batch_size}{where}; lower the batch size or turn drop_last off"
            )

    def reach(self, position: int) -> None:
        """Know whether every rank has a draw at this position; the window after is read from its window's half on."""
        self._read_for(position)
        self._shares.reach(position, self._known)

    def __len__(self) -> int:
        """Draws known: no more than every rank has, where one has come to its end."""
        return self._known if self._shares.end is None else self._shares.end

    def __getitem__(self, position: int) -> Int64[np.ndarray, " b"]:
        """The ids of a draw: consecutive items."""
        return self._ids(position * self._batch_size, (position + 1) * self._batch_size)

    def offered(self, position: int) -> Int64[np.ndarray, " w"]:
        """The ids that candidates of a draw may be: those of its window that are in a batch.

        The last window of a pass is filled up with the items before it.
        """
        last = min(self._window_of(position) + self.width, self._known * self._batch_size)
        return self._ids(max(0, last - self.width), last)

    def close(self) -> None:
        """Stop the reader, and delete the files. May be called twice."""
        self._pipeline.close()
        self._finalizer()

    # Windows

    @property
    def _known(self) -> int:
        """Draws that this rank's items make."""
        rest = 0 if self._drop_last else self._count % self._batch_size > 0
        return self._count // self._batch_size + rest

    def _read_for(self, position: int) -> None:
        while not self._is_whole and position >= self._start:
            if not self._pipeline.waiting:
                self._ask()
            if position < (self._start + self._known) // 2:
                return
            self._take_over(self._pipeline.get())

    def _window_of(self, position: int) -> int:
        """The place where the window of a draw begins."""
        return (position - position % self.draws_per_window) * self._batch_size

    def _ids(self, first: int, last: int) -> Int64[np.ndarray, " n"]:
        return item_id(self._number, 0) + np.arange(first, min(last, self._count))

    def _new_pipeline(self) -> AddressPipeline:
        reading = StreamReading(self._stream, self._folder, self.width, self._seed, self._mark)
        return AddressPipeline(reading, like=self._workers)

    def _ask(self) -> None:
        """Have the next window read; what is before the last one is used up."""
        before = self._start * self._batch_size - self.width
        for place in [place for place in self._marks if place <= before]:
            del self._marks[place]
            (self._folder / window_name(item_id(self._number, place))).unlink(missing_ok=True)
        first = item_id(self._number, self._count)
        self._pipeline.put(Addresses(np.array([first]), np.zeros(1, np.int64)))

    def _take_over(self, filled: Filled) -> None:
        self._start = self._count // self._batch_size
        self._marks[self._count] = filled.mark
        self._count += filled.count
        self._is_whole = filled.count < self.width
        if filled.skipped:
            warnings.warn(
                f"the stream cannot go on exactly where the run stood, so its pass was read again from an earlier "
                f"place: {filled.skipped} items were skipped. A data set with state_dict() and load_state_dict() (and "
                "without a shuffle buffer) goes on at once",
                RuntimeWarning,
                stacklevel=8,
            )

    # Resume

    def state_dict(self, position: int) -> dict[str, Any]:
        """How to come to what a draw is offered again."""
        first = self._window_of(position)
        is_short = self._is_whole and self._count < first + self.width
        mark = self._marks.get(first - self.width if is_short else first, self._marks.get(first))
        return {"width": self.width, "mark": None if mark is None else mark.as_plain()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from there, when the pass is begun next.

        Raises:
            ValueError: it is the state of another kind of loader, or of other windows.
        """
        found = None if state is None else state["width"]
        if state is None or found != self.width:
            raise ValueError(
                f"a resumed stream needs the windows it was saved with: got window={found} -> {self.width}; restore it"
            )
        self._mark = None if state["mark"] is None else Mark.of(state["mark"])
        self._pipeline.close()
        self._pipeline = self._new_pipeline()


def passes_of(dataloader: "DataLoader[Any]", mining: Mining, *, has_transform: bool) -> Passes | None:
    """The passes of a loader over a stream; None for one over a map-style data set.

    Raises:
        ValueError: as `Passes`; or a window was asked for where there is no stream.
    """
    if isinstance(dataloader.dataset, IterableDataset):
        return Passes(dataloader, mining, has_transform=has_transform)
    if mining.window is not None:
        raise ValueError(
            f"window is for streams: got window={mining.window} for a map-style data set, all of whose samples can be "
            "read at any time; drop it"
        )
    return None


def _reader_workers(dataloader: "DataLoader[Any]") -> ViewWorkers:
    """As the loader's, but one at most, which goes on reading from pass to pass, and may take its time."""
    workers = ViewWorkers.of(dataloader)
    is_beside = workers.num_workers > 0
    return replace(workers, num_workers=int(is_beside), pin_memory=False, timeout=0.0, persistent_workers=is_beside)


def _removed(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked from it has this object too
        shutil.rmtree(folder, ignore_errors=True)
