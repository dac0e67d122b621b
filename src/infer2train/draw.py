"""What became of one draw: what a loader tells of each batch that it hands out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infer2train.addresses import Addresses


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch handed to the training loop, and how it came about."""

    draw: int
    """Counted from 0 over the whole run."""
    epoch: int
    step: int
    """The step that trains on it."""
    version: int | None
    """Version of the weights that scored it; None where no oracle did."""
    addresses: Addresses
    """The trained examples, in the order of the batch."""
    candidates: Addresses
    """What the oracle looked at; empty where nothing was scored."""
    scores: Float[Tensor, " n"] | None
    """One number for each candidate."""
    chosen: Int64[np.ndarray, " t"] | None
    """For each trained example its index among the candidates."""
    mined: Bool[np.ndarray, " t"] | None
    """Whether each trained example was picked for its score."""
    log_probabilities: Float[Tensor, "b k"] | None
    """The oracle's mean log-probabilities, for distillation."""

    @property
    def lag(self) -> int | None:
        """Step of the draw minus the version that scored it (steps)."""
        return None if self.version is None else self.step - self.version
