"""What carries records and draws to workers, and their answers back: who calls, when, and whose the memory is.

A supervisor (`supervisor`) has one `Transport`, and one `Link` to each worker; a worker (`worker`) sits at one `Desk`.
Processes are one transport (`process`), a cluster's actors another (`ray_pool`): neither supervisor nor worker knows
which.
What is carried stands in `messages`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infer2train.pool.messages import News, Order


class LinkClosedError(ConnectionError):
    """Nobody is at the other end any more."""


@dataclass(frozen=True, kw_only=True)
class Post:
    """A worker's place: what stays the same when it is replaced.

    Args:
        lane: its name on the timeline, such as `oracle 0`.
        cores: that it may run on; empty for those of this process.
        threads: of its arithmetic.
        is_freshest: whether it uses the newest weights at hand, or the version that a draw names.
        is_newest_first: whether it begins with the draw that was submitted last. An oracle that cannot keep up would
            otherwise always work on the draw that is needed next, and always be late.
    """

    lane: str
    cores: tuple[int, ...] = ()
    threads: int = 1
    is_freshest: bool = False
    is_newest_first: bool = False

    @classmethod
    def several(cls, workers: int, cores: Sequence[int] = (), **settings: Any) -> list["Post"]:
        """Posts of so many workers that share out these cores among them.

        Example:
            >>> [post.cores for post in Post.several(2, (1, 2, 3))]
            [(1, 3), (2,)]
        """
        return [cls(lane=f"oracle {i}", cores=tuple(cores[i::workers]), **settings) for i in range(workers)]


class Link(ABC):
    """One worker as its supervisor has it, from `Transport.start` to `end`; used by the supervisor's thread alone."""

    @property
    def is_placed(self) -> bool:
        """Whether it has got where to run. One that waits for that is told nothing, and nothing is expected of it."""
        return True

    @property
    def where(self) -> str:
        """The machine that it runs on, or what it waits for, in words; empty where that is this machine."""
        return ""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Of its process."""

    @property
    @abstractmethod
    def beats(self) -> int:
        """A count that grows as long as the worker lives, whatever it is busy with."""

    @property
    @abstractmethod
    def phase(self) -> str:
        """What it is doing, in words."""

    @abstractmethod
    def tell(self, order: Order) -> None:
        """Have an order carried to it; never waits. What it refers to is not changed after, but may be let go.

        Raises:
            LinkClosedError: it is gone.
        """

    @abstractmethod
    def heard(self) -> list[News]:
        """All that it has told since the last call; never waits. The tensors belong to the caller.

        Raises:
            LinkClosedError: it is gone, and so is all that it told.
        """

    @abstractmethod
    def how_it_ended(self, *, patience_seconds: float = 0.0) -> str | None:
        """In words; None while it runs, after so long a wait for its end."""

    @abstractmethod
    def ended_by_itself(self) -> bool:
        """Whether it ended, and nobody killed it."""

    @abstractmethod
    def end(self, *, patience_seconds: float = 0.0) -> None:
        """End it, by force if it has not ended after so long; nothing is called after."""


class Transport(ABC):
    """Starts workers that have the task, and reaches them; used by one supervisor, in one thread."""

    def room(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Memory for a record of tensors like these, which it can carry at the least cost.

        Whoever asked fills it before the record is published, and nobody changes it after; it lives as long as anybody
        holds one of its tensors.
        """
        return {name: torch.empty_like(tensor) for name, tensor in tensors.items()}

    def carried(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of a record in such memory: these where they are in it, else copies. Called once a record."""
        return tensors

    @abstractmethod
    def start(self, post: Post) -> Link:
        """A new worker, which need not be ready yet."""

    def avoid(self, link: Link) -> bool:
        """Start no worker any more where this one ran, which was refused; False where there is nowhere else, not even
        in time to come."""
        return False

    @abstractmethod
    def wait(self, links: Iterable[Link], seconds: float) -> None:
        """Wait until one of them has told something, or so long."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was kept for workers that are started; called once, when all have ended."""


class Desk(ABC):
    """Where a worker sits. Its one thread takes orders; any of its threads may tell something."""

    @abstractmethod
    def orders(self, *, wait: bool) -> list[Order]:
        """All that have come, in their order. The tensors of a record are not to be written to.

        Args:
            wait: until there is one.

        Raises:
            LinkClosedError: the supervisor is gone.
        """

    @abstractmethod
    def tell(self, news: News) -> None:
        """Have something carried to the supervisor; never waits. What it refers to is not changed after.

        Raises:
            LinkClosedError: the supervisor is gone.
        """

    @abstractmethod
    def enter(self, phase: str) -> None:
        """Say what the worker does from now on."""
