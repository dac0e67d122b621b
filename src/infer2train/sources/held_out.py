"""Data beside the data: what a run trains on, and behind it, by higher ids, what it only looks at."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.draws.addresses import Addresses
from infer2train.sources.source import Around, Source


@dataclass(frozen=True)
class HeldOut:
    """A batch of the data that is held out."""

    batch: Any


class WithHeldOut(Around):
    """A source, and behind it another: a batch is of one of them.

    Args:
        source: the ids of which stay as they are.
        held_out: whose ids come after them, `at`.
    """

    def __init__(self, source: Source, held_out: Source) -> None:
        super().__init__(source)
        self._held_out = held_out

    @staticmethod
    def at(source: Source, ids: Int64[np.ndarray, " n"]) -> Addresses:
        """The addresses of these ids of what is held out behind a source; nothing of it is random."""
        return Addresses(len(source) + ids, np.zeros(len(ids), dtype=np.int64))

    @property
    def moves_random_state(self) -> bool:
        return self._source.moves_random_state or self._held_out.moves_random_state

    def batch(self, addresses: Addresses) -> Any:
        first = len(self._source)
        if addresses.ids[0] < first:
            return self._source.batch(addresses)
        return HeldOut(self._held_out.batch(Addresses(addresses.ids - first, addresses.seeds)))
