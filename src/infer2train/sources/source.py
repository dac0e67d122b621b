"""The contract of whatever can be read at an address.

A source turns addresses into a batch, exactly as the user's `collate_fn` would have made it. `Replay` is the source
over any map-style data set; `views.ImageViews` the vectorised one over images in memory, `views.OnDemandViews`
that over images which are decoded when they are needed.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.draws.addresses import Addresses


class Source(ABC):
    """Data that can be read at an address.

    Called from the trainer's process and from `DataLoader` workers, by one thread a process. It must be picklable where
    workers are spawned. What `batch` returns belongs to the caller. The same addresses give the same bits: alone, in a
    larger list, in another process, after a resume.
    """

    @property
    def dataset(self) -> Any:
        """What the user gave: `get_worker_info().dataset` in the processes that read."""
        return self

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        """The ids that may be read, ascending: all, but for a source that a run reads only a part of."""
        return np.arange(len(self))

    @property
    def moves_random_state(self) -> bool:
        """Whether reading sets the global generators for a while: no other thread may draw from them meanwhile."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are; ids are in [0, len)."""

    @abstractmethod
    def batch(self, addresses: Addresses) -> Any:
        """The collated batch of these candidates, in their order.

        Args:
            addresses: at least one.

        Returns:
            What the user's `collate_fn` returns for the samples under their seeds: any pytree.
        """


class Around(Source):
    """Another source under the same ids, with something about its batches changed.

    Args:
        source: what is read.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def dataset(self) -> Any:
        return self._source.dataset

    @property
    def ids(self) -> Int64[np.ndarray, " n"]:
        return self._source.ids

    @property
    def moves_random_state(self) -> bool:
        return self._source.moves_random_state

    def __len__(self) -> int:
        return len(self._source)


class Itemwise(Source):
    """A source that reads sample by sample and then makes a batch of them; the two can be told apart."""

    @abstractmethod
    def items(self, addresses: Addresses) -> list[Any]:
        """The samples at these addresses, before they are collated."""

    @abstractmethod
    def collated(self, items: list[Any], seed: int) -> Any:
        """The batch of these samples, where all random generators are set by this seed."""
