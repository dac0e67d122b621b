"""One draw on its way, from planned to handed out: which batch it is, what may score it, what is trained on.

A draw is a record that is filled on its way: the loader plans it, the pool scores its candidates, its method picks, and
the training loop finds it in `loader.last`. Every random number of a draw follows from (seed, epoch, number).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from infer2train.draws.addresses import Addresses, Purpose, seeds


class Kind(Enum):
    """What a draw is. Decided once, when it is planned."""

    GIVEN = "given"
    """The batch as the user's loader gave it."""
    UNSCORED = "unscored"
    """A batch that the method makes without a look at candidates."""
    MINED = "mined"
    """A batch that is picked among candidates, in part or whole."""
    DISTILLED = "distilled"
    """The batch as given; the oracle tells what it thinks of other views of it."""
    MADE = "made"
    """What a model makes of the inputs that the user's loader gave."""

    @property
    def is_scored(self) -> bool:
        """Whether its candidates are looked at."""
        return self in (Kind.MINED, Kind.DISTILLED)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch, and how it came about."""

    number: int
    """Counted from 0 over the whole run."""
    epoch: int
    step: int
    """The step that trains on it."""
    kind: Kind
    share: float = 1.0
    """Mined share r in [0, 1], from the ramp."""
    seed: int = field(repr=False)
    """The run's."""
    ids: Int64[np.ndarray, " b"] = field(repr=False)
    """Sample ids of the batch that the user's loader gave."""
    epoch_ids: Int64[np.ndarray, " e"] = field(repr=False)
    """Every id that the user's sampler gives in this epoch; of a stream, those of the window."""
    version: int | None
    """Version of the weights that scored it, or is to; None where no oracle does."""
    candidates: Addresses
    """What the oracle looked at; empty where nothing was scored."""
    scores: Float[Tensor, " n"] | None = None
    """One number for each candidate."""
    log_probabilities: Float[Tensor, "b *t k"] | None = None
    """The oracle's mean log-probabilities, for distillation; of a token that does not count, NaN."""
    addresses: Addresses
    """The trained examples, in the order of the batch."""
    chosen: Int64[np.ndarray, " t"] | None = None
    """For each trained example its index among the candidates; None where nothing was chosen."""
    mined: Bool[np.ndarray, " t"] | None = None
    """Whether each trained example was picked for its score, or fills the batch; None where nothing was chosen."""
    weights: Float32[Tensor, " t"] | None = None
    """What each example's loss counts in their mean, from methods that train on a part of a batch; None where all count
    1: `(losses * loader.last.weights).mean()`."""

    @property
    def lag(self) -> int | None:
        """Step of the draw minus the version that scored it (steps)."""
        return None if self.version is None else self.step - self.version

    def numbers(self, make: Callable[..., Any], purpose: Purpose, slot: Any, view: Any = 0) -> Any:
        """Random numbers of this draw, from one of the functions of `addresses`."""
        return make(self.seed, purpose, epoch=self.epoch, draw=self.number, slot=slot, view=view)

    def views(self, first: int, count: int) -> Addresses:
        """Views `first` … `first + count − 1` of each slot, slot by slot: [b * count].

        View 0 is the baseline's view (common random numbers), whatever the method.
        """
        slot, view = np.arange(len(self.ids))[:, None], np.arange(first, first + count)[None, :]
        return Addresses(np.repeat(self.ids, count), self.numbers(seeds, Purpose.VIEW, slot, view).reshape(-1))

    def samples(self, count: int) -> Addresses:
        """`count` samples of the epoch, with replacement, each under a view of its own."""
        slot = np.arange(count)
        which = self.numbers(seeds, Purpose.CANDIDATE, slot) % len(self.epoch_ids)
        return Addresses(self.epoch_ids[which], self.numbers(seeds, Purpose.VIEW, slot))
