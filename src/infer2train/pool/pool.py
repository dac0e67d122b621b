"""The pool contract: runs the scoring task on addresses, with the weights of a given version."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.observe.timeline import Timeline
from infer2train.oracle.scorer import Scores
from infer2train.oracle.snapshot import Record


class OracleLostError(RuntimeError):
    """No oracle is left that could score, and none could be started again."""


class Pool(ABC):
    """Scores draws. The miner's process calls it, from one thread, in this order:

    `publish` each version once, ascending; `submit` each draw once its version is published; `collect` or `cancel` each
    submitted draw once, in the order of submission; `forget` when an epoch ends or is broken off, after which draws may
    be submitted again; `close` at the end. Scoring is idempotent: a pool may do lost work again.
    """

    queue_depth: int = 0
    """Draws that it is worth to have submitted ahead of those that the trainer's own workers make views of."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        """What the pool did when; the miner adds what the trainer did."""

    @property
    @abstractmethod
    def records(self) -> Mapping[int, Record]:
        """What is published and not retired, by version; with the ranges of activations, once they are measured."""

    def room(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Memory for a copy of these tensors, which a record made of them can be published from at the least cost."""
        return {name: torch.empty_like(tensor) for name, tensor in tensors.items()}

    @abstractmethod
    def publish(self, record: Record) -> None:
        """Make a version available; one published again replaces what was published under its number."""

    @abstractmethod
    def retire(self, version: int) -> None:
        """Versions below this one will not be asked for again: forget them."""

    @abstractmethod
    def submit(self, draw: int, addresses: Addresses, version: int | None) -> None:
        """Ask for the scores of a draw's candidates, by the weights of `version` (None: labels only).

        Raises:
            ValueError: the version was never published.
        """

    @abstractmethod
    def is_ready(self, draw: int) -> bool:
        """Whether `collect` would not have to wait for anybody else."""

    @abstractmethod
    def collect(self, draw: int) -> Scores:
        """The scores of a submitted draw; waits for them.

        Raises:
            OracleLostError: nobody is left to score it.
        """

    @abstractmethod
    def cancel(self, draw: int) -> None:
        """Do without the scores of a submitted draw, instead of collecting them."""

    @abstractmethod
    def seconds(self) -> dict[str, float]:
        """Wall-clock of the miner's process spent so far, by what on: `views`, `scoring`, `publishing`."""

    def totals(self) -> dict[str, float]:
        """Running totals of refreshes and of the oracle's fidelity, see `infer2train.observe.metrics.window`."""
        return {}

    @abstractmethod
    def forget(self) -> None:
        """Forget what was submitted. Published records stay; may be called twice."""

    def close(self) -> None:
        """Forget what was submitted and stop all that was started. May be called twice; nothing is called after."""
        self.forget()


def check_scores(scores: Scores, draw: int, version: int | None, *, is_exact: bool = True) -> Scores:
    """The scores, if they are of that draw by that version.

    Args:
        scores: what a pool answered.
        draw: what it was asked for.
        version: by which it was asked for.
        is_exact: whether any other version is wrong.

    Raises:
        RuntimeError: a pool answered with something else. Never train on that.
    """
    is_right = scores.version == version if is_exact else (scores.version is None) == (version is None)
    if scores.draw != draw or not is_right:
        raise RuntimeError(
            f"scores must be of the draw and version asked for: got draw {scores.draw} by version {scores.version} "
            f"for draw {draw} by version {version}; this is a fault of the pool, please report it"
        )
    return scores


def require_published(draw: int, version: int | None, records: Mapping[int, Record]) -> None:
    """Refuse a draw that asks for weights that nobody has.

    Raises:
        ValueError: the version is not published, or is retired.
    """
    if version is not None and version not in records:
        raise ValueError(
            f"a draw must be scored by a published version: got {version} for draw {draw}, published "
            f"{sorted(records)}; publish it first"
        )
