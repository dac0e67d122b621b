"""What a method is: five choices that a table shows, and a class that makes candidates and picks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from infer2train.batches import logits_of
from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw, Kind
from infer2train.draws.mining import Mining
from infer2train.draws.ramp import ALWAYS, Ramp
from infer2train.draws.selection import num_mined

Read = Callable[[Addresses], tuple[Any, Any]]
"""Addresses -> (inputs, targets)."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One way to use an oracle, at a glance."""

    candidates: Literal["one-view", "views", "samples", "anchors"]
    """What a draw consists of: B × 1; B × γ views; γ·B ids with replacement; B anchors and B × γ views."""
    score: str | None
    """What the oracle gives for each candidate; None where it gives none."""
    pick: str
    """What is trained on: all, anchors, hardest samples by class, or one view of each sample (see `PICKS`)."""
    schedule: Ramp = ALWAYS
    """How the mined share grows."""
    loss: Literal["plain", "distillation", "weighted"] = "plain"
    """L; L + λ·(1/γ)·Σ KL(F(x) ‖ F̃(T_i x)) (equation 1); or L with a weight for each example."""
    source: str
    """Where it is described."""
    made_by: str
    """Its class, `package.module:name`."""

    @property
    def has_oracle(self) -> bool:
        """Whether a forward pass of the oracle is needed."""
        return self.loss == "distillation" or (self.score is not None and self.score != "uniform")

    @property
    def looks_at_candidates(self) -> bool:
        """Whether candidates are looked at before the pick (random-sample needs their labels)."""
        return self.kind.is_scored

    @property
    def needs_irreducible(self) -> bool:
        """Whether it must be told what a model trained on other data loses on each sample."""
        return self.pick in ("learnable", "trusted")

    @property
    def is_rampable(self) -> bool:
        """Whether only a share of a draw can be mined."""
        return self.kind is Kind.MINED and self.loss == "plain"

    @property
    def kind(self) -> Kind:
        """What a draw is while everything is mined."""
        if self.loss == "distillation":
            return Kind.DISTILLED
        if self.score is not None:
            return Kind.MINED
        return Kind.GIVEN if self.candidates == "one-view" else Kind.UNSCORED


class Method(ABC):
    """Makes the candidates of draws, and picks what is trained on.

    One loader has one. `candidates` and `select` may be called ahead of a draw's turn, and again after a resume: they
    change nothing, and follow from the draw and from what `begin_epoch` last took over. A method with a memory writes
    to it in `observe`, which sees the draws that were handed out, in their order.

    Args:
        mining: the settings.
        choices: the method's line of the table, with what the user chose instead.
    """

    def __init__(self, mining: Mining, choices: Choices) -> None:
        self.mining, self.choices = mining, choices

    def share(self, epoch: int) -> float:
        """The share of a draw in an epoch that may be mined, in [0, 1]."""
        return self.choices.schedule.share(epoch, self.mining.epochs)

    def kind_of(self, step: int, share: float, batch: int) -> Kind:
        """What a draw is.

        Args:
            step: that trains on it.
            share: of it that the ramp lets be mined.
            batch: how many ids the user's loader gave.
        """
        kind = self.choices.kind
        if step % self.mining.mine_every:
            return Kind.GIVEN
        # Nothing is asked of the oracle where the ramp mines nothing yet.
        return Kind.UNSCORED if kind is Kind.MINED and num_mined(share, batch) == 0 else kind

    @abstractmethod
    def candidates(self, draw: Draw) -> Addresses:
        """What the oracle looks at, in a draw whose kind is scored."""

    @abstractmethod
    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        """The draw with what is trained on: `addresses`, and `chosen`, `mined`, `weights` where it has them.

        Args:
            draw: of any kind but GIVEN, its candidates made.
            scores: of its candidates, in their order; None where the oracle gives none or nothing was scored.
            targets: of the same candidates (class labels int64 [n] where they are balanced).
        """

    def penalty(self, outputs: Any, draw: Draw) -> Float[Tensor, ""]:
        """What is added to the loss of a draw: a scalar that gradients flow through."""
        return logits_of(outputs).new_zeros(())

    def survey(self, read: Read, ids: Int64[np.ndarray, " n"]) -> None:
        """Look at the data once, before the first draw.

        Args:
            read: addresses -> (inputs, targets).
            ids: all that the loader may train on.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Take over into the picks of an epoch what was observed before it."""

    def observe(self, draw: Draw) -> None:
        """Take note of a draw that was handed out."""

    def state_dict(self) -> dict[str, Any]:
        """The memory: tensors and plain values, from which the same picks follow after a resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the memory of another of the same settings."""

    def metrics(self) -> dict[str, float]:
        """What is worth telling of the memory, for `loader.metrics()`."""
        return {}
