"""What a supervisor and its workers say to each other, whatever carries it."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from infer2train.observe.timeline import Span
from infer2train.oracle.snapshot import NotFiniteError

OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
KINDS: dict[str, type[Exception]] = {"NotFiniteError": NotFiniteError, "ValueError": ValueError}
"""Errors that a worker and the trainer's process have in common."""


class OracleError(RuntimeError):
    """Something failed in a worker; the message has what failed there, and where."""


# What a worker is told


@dataclass(frozen=True)
class Take:
    """A record of weights to be kept; `number` tells it from another of the same version."""

    number: int
    version: int
    tensors: Mapping[str, Tensor]
    ranges: dict[str, Tensor]
    probe_scores: Tensor | None


@dataclass(frozen=True)
class Do:
    """A draw; `ticket` tells it from the same one asked for again."""

    ticket: int
    draw: int
    version: int | None
    ids: Int64[np.ndarray, " n"]
    seeds: Int64[np.ndarray, " n"]
    is_aside: bool = False
    """Whether it may wait until no draw is to be done."""


@dataclass(frozen=True)
class Cancel:
    """Nobody wants the answer any more."""

    ticket: int


@dataclass(frozen=True)
class Forget:
    """Nor any other."""


@dataclass(frozen=True)
class Retire:
    """Versions below this one are not asked for again."""

    version: int


@dataclass(frozen=True)
class Stop:
    """End."""


# What a worker tells


@dataclass(frozen=True)
class Ready:
    """It has its task, and computes with this."""

    fingerprint: dict[str, str]


@dataclass(frozen=True)
class Measured:
    """The ranges of a record that came without."""

    number: int
    version: int
    ranges: dict[str, Tensor]


@dataclass(frozen=True)
class Warned:
    """What Python warned of there."""

    message: str


@dataclass(frozen=True)
class Done:
    """An answer, with running totals of the worker and what it did when since the last one."""

    ticket: int
    draw: int
    version: int | None
    tree: Any
    totals: dict[str, float]
    spans: list[Any]

    def as_spans(self) -> list[Span]:
        """What it did when; they travel as lists."""
        return [Span(*parts) for parts in self.spans]


@dataclass(frozen=True)
class Failed:
    """An error instead of an answer; without a ticket, instead of a worker that is ready."""

    ticket: int | None
    error: str
    message: str
    trace: str

    @classmethod
    def by(cls, error: Exception, ticket: int | None) -> "Failed":
        """What an error says, with its notes and where it came from."""
        notes = "; ".join(getattr(error, "__notes__", ()))
        message = f"{error}{f' ({notes})' if notes else ''}"
        return cls(ticket, type(error).__name__, message, "".join(traceback.format_exception(error)))

    def as_error(self, lane: str) -> Exception:
        """The error as it would have come up here."""
        if self.error in KINDS:
            error = KINDS[self.error](self.message)
            error.add_note(f"in the process of {lane}:\n{self.trace}")
            return error
        if self.error in OUT_OF_MEMORY or "can't allocate memory" in self.message:
            return OracleError(
                f"{lane} must have memory enough: got {self.error}: {self.message}; lower --oracle-chunk or --gamma"
            )
        return OracleError(f"{lane} failed with {self.error}: {self.message}\n\nin its process:\n{self.trace}")


Order = Take | Do | Cancel | Forget | Retire | Stop
News = Ready | Measured | Warned | Done | Failed
