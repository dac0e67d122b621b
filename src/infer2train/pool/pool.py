"""The pool contract: runs the scoring task on addresses, with the weights of a given version."""

from abc import ABC, abstractmethod

from infer2train.addresses import Addresses
from infer2train.oracle.scorer import Scores
from infer2train.oracle.snapshot import Record


class Pool(ABC):
    """Scores draws. The miner's process calls it, from one thread, in this order:

    `publish` each version once, ascending; `submit` each draw once its version is published; `collect` each submitted
    draw once, in the order of submission; `close` when an epoch ends or is broken off, after which draws may be
    submitted again. Scoring is idempotent: a pool may do lost work again.
    """

    @abstractmethod
    def publish(self, record: Record) -> Record:
        """Make a version available; one published again replaces what was published under its number.

        Returns:
            The record as published: with the ranges that the engines of this pool need, measured once.
        """

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
    def collect(self, draw: int) -> Scores:
        """The scores of a submitted draw; waits for them."""

    @abstractmethod
    def seconds(self) -> dict[str, float]:
        """Wall-clock spent so far, by what on: `views`, `scoring`, `publishing`."""

    def totals(self) -> dict[str, float]:
        """Running totals of refreshes and of the oracle's fidelity, see `infer2train.metrics.window`."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Forget what was submitted and stop what was started. Published records stay; may be called twice."""


def check_scores(scores: Scores, draw: int, version: int | None) -> Scores:
    """The scores, if they are of that draw by that version.

    Raises:
        RuntimeError: a pool answered with something else. Never train on that.
    """
    if (scores.draw, scores.version) != (draw, version):
        raise RuntimeError(
            f"scores must be of the draw and version asked for: got draw {scores.draw} by version {scores.version} "
            f"for draw {draw} by version {version}; this is a fault of the pool, please report it"
        )
    return scores
