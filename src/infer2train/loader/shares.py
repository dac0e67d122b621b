"""The shares of a stream that several ranks read: each its own, and as many draws of one as of another.

Beside the passes, which read this rank's share. Only a count crosses, once a window, and a digest, once a pass.
"""

from typing import Any

import numpy as np

from infer2train.loader.ranks import Ranks
from infer2train.sources.streaming import COMPARED


class Shares:
    """Of one pass after another. All ranks call the same, at the same draws.

    Args:
        ranks: of the run.
        draws_per_window: alike on each.

    Example:
        >>> shares = Shares(Ranks(), draws_per_window=4)
        >>> shares.reach(0, known=8), shares.end
        (None, None)
        >>> shares.reach(4, known=6), shares.end
        (None, 6)
    """

    def __init__(self, ranks: Ranks, draws_per_window: int) -> None:
        self._ranks, self._draws_per_window = ranks, draws_per_window
        self.begin()

    def begin(self) -> None:
        """Another pass."""
        self._agreed = 0
        self.end: int | None = None
        """Draws of the pass, once a rank is known to have no more."""

    def reach(self, position: int, known: int) -> None:
        """Learn how many draws all ranks have of the window that a draw is in.

        Args:
            position: of the draw.
            known: draws that this rank has, at least as far as that window goes.
        """
        if self.end is not None or position < self._agreed:
            return
        wanted = position - position % self._draws_per_window + self._draws_per_window
        counts = self._ranks.of_all(np.array([min(known, wanted)]), longest=1)
        self._agreed = min(int(count[0]) for count in counts)
        self.end = self._agreed if self._agreed < wanted else None

    def require_apart(self, digest: list[Any]) -> None:
        """Refuse ranks that read the same.

        Args:
            digest: of the items that this rank has read first.

        Raises:
            ValueError: another rank has read these too.
        """
        everyone = self._ranks.texts_of_all(repr(digest))
        same = [rank for rank, other in enumerate(everyone) if everyone.count(other) > 1]
        if same and len(digest) == COMPARED:
            raise ValueError(
                f"each rank must read a share of the stream that is its own: got the same items on ranks {same}; share "
                "it out by rank: datasets.distributed.split_dataset_by_node(stream, rank, world_size), WebDataset's "
                "nodesplitter=wds.split_by_node, or islice(items, rank, None, world_size) in __iter__"
            )
