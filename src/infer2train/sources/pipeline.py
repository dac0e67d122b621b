"""An ordinary DataLoader that is fed one list of addresses at a time.

Both sides of the way of the data read through it: the scorer its candidates, the trainer its picks, with the user's own
workers, collate function and pinning. A DataLoader asks its sampler for work whenever it hands out a batch, also while
there is none yet (the picks of a draw exist only once its version is published); the sampler then gives an idle token,
which a worker returns at once. So one iterator lives through a whole epoch, or through all of them where workers are
persistent, never blocks and never runs dry.
"""

import random
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from infer2train.draws.addresses import Addresses
from infer2train.sources.source import Source

IDLE = None


@dataclass(frozen=True, kw_only=True)
class ViewWorkers:
    """How the processes that make views are run; the settings of a DataLoader that can be sent to another process.

    Example:
        >>> ViewWorkers.of(DataLoader([0], num_workers=2)).num_workers
        2
    """

    num_workers: int = 0
    pin_memory: bool = False
    timeout: float = 0.0
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: str | None = None
    prefetch_factor: int | None = None
    persistent_workers: bool = False

    @classmethod
    def of(cls, dataloader: "DataLoader[Any]", reader: torch.device | None = None) -> "ViewWorkers":
        """The settings of the user's loader.

        All but some: `in_order`, since the order is part of what a run is a function of; `generator`, which starting
        workers would move; `pin_memory_device`, which torch itself ignores; for an oracle `timeout`, which is for one
        of the user's batches, while an oracle reads many candidates at a time.

        Args:
            dataloader: the user's.
            reader: where an oracle's batches go; they are pinned for a CUDA device only, since whoever pins holds
                memory on one. Default: the trainer's, which go wherever the loader's go.
        """
        context = dataloader.multiprocessing_context
        return cls(
            num_workers=dataloader.num_workers,
            pin_memory=dataloader.pin_memory and (reader is None or reader.type == "cuda"),
            timeout=dataloader.timeout if reader is None else 0.0,
            worker_init_fn=dataloader.worker_init_fn,
            multiprocessing_context=context.get_start_method() if context is not None else None,
            prefetch_factor=dataloader.prefetch_factor,
            persistent_workers=dataloader.persistent_workers,
        )

    def numbering(self, num_workers: int | None) -> "ViewWorkers":
        """The same, but so many; None for as many as there are.

        Example:
            >>> ViewWorkers(num_workers=4, prefetch_factor=2).numbering(0).prefetch_factor is None
            True
        """
        if num_workers is None or num_workers == self.num_workers:
            return self
        if num_workers > 0:
            return replace(self, num_workers=num_workers)
        return ViewWorkers(pin_memory=self.pin_memory, worker_init_fn=self.worker_init_fn)


class AddressPipeline:
    """Batches made at addresses, ahead of time, in the order asked for.

    Args:
        source: what is read.
        like: the user's DataLoader, whose number of workers, pinning, prefetching, start method and persistence are
            taken over; or these alone.

    Example:
        >>> pipeline = AddressPipeline(source, like=loader)
        >>> pipeline.put(addresses)
        >>> batch = pipeline.get()
    """

    def __init__(self, source: Source, like: "DataLoader[Any] | ViewWorkers") -> None:
        workers = like if isinstance(like, ViewWorkers) else ViewWorkers.of(like)
        self._queue: deque[Addresses] = deque()
        self._waiting = 0
        self._iterator: Iterator[Any] | None = None
        self._is_persistent, self._is_sound = workers.persistent_workers, True
        self._loader = DataLoader(
            _AtAddresses(source),
            batch_sampler=_Feed(self._queue),  # type: ignore[arg-type]  # addresses and idle tokens, not ids
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # so that starting workers does not move the user's random state
            num_workers=workers.num_workers,
            pin_memory=workers.pin_memory,
            timeout=workers.timeout,
            worker_init_fn=_Begin(workers.worker_init_fn),
            multiprocessing_context=workers.multiprocessing_context,
            prefetch_factor=workers.prefetch_factor,
            persistent_workers=False,  # nothing is ever iterated twice: the iterator itself is kept
        )

    @property
    def depth(self) -> int:
        """Batches that workers make ahead; 0 where the calling process makes them."""
        return self._loader.num_workers * (self._loader.prefetch_factor or 0)

    @property
    def waiting(self) -> int:
        """Batches asked for and not yet taken."""
        return self._waiting

    def put(self, addresses: Addresses) -> None:
        """Ask for one batch."""
        self._queue.append(addresses)
        self._waiting += 1

    def get(self) -> Any:
        """The oldest batch asked for and not yet taken; waits for it."""
        assert self._waiting > 0, "get() without put()"
        if self._iterator is None:
            self._iterator = iter(self._loader)
        self._waiting -= 1
        was_sound, self._is_sound = self._is_sound, False
        while (made := next(self._iterator)) is IDLE:
            pass
        self._is_sound = was_sound
        return made[0]

    def forget(self) -> None:
        """Forget what was asked for; workers that are not persistent are stopped. May be called twice."""
        # After an error or Ctrl-C nobody knows whether the batch that was waited for is still to come.
        if not (self._is_persistent and self._is_sound):
            self.close()
            return
        self._waiting -= len(self._queue)
        self._queue.clear()
        try:
            while self._waiting:
                self.get()  # a worker has it already
        except Exception:  # of a batch that nobody wants
            self.close()

    def close(self) -> None:
        """Stop the workers and forget what was asked for. May be called twice."""
        if isinstance(self._iterator, _MultiProcessingDataLoaderIter):
            # Letting go of it is not enough: a traceback that somebody keeps holds it, and with it the processes.
            self._iterator._shutdown_workers()
        self._iterator = None
        self._queue.clear()
        self._waiting, self._is_sound = 0, True


class _AtAddresses(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, addresses: Addresses | None) -> Any:
        # The tuple tells a batch from an idle token, whatever a collate_fn returns.
        return IDLE if addresses is IDLE else (self.source.batch(addresses),)


@dataclass(frozen=True)
class _Begin:
    """Called in each worker when it starts: shows it the user's data set, and calls the user's own function.

    What that draws from the global generators is the same in every worker, for it may become part of the data.

    Args:
        init: the user's `worker_init_fn`, which opens files there, say.
    """

    init: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
        info = get_worker_info()
        assert info is not None
        assert isinstance(info.dataset, _AtAddresses)
        object.__setattr__(info, "dataset", info.dataset.source.dataset)  # it refuses to be changed otherwise
        if self.init is not None:
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            self.init(worker)


class _Feed:
    def __init__(self, queue: deque[Addresses]) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[Addresses | None]:
        while True:
            yield self._queue.popleft() if self._queue else IDLE


def _as_it_is(batch: Any) -> Any:
    return batch
