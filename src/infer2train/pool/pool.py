"""The pool contract: runs a task at addresses, with the weights of a given version."""

import atexit
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.draws.mining import Mining
from infer2train.machine.cores import available_cores
from infer2train.observe.timeline import Timeline
from infer2train.oracle.snapshot import Record
from infer2train.pool.task import Answer, Task

Cores = tuple[int, ...]


class OracleLostError(RuntimeError):
    """No oracle is left that could work, and none could be started again."""


class Pool(ABC):
    """Does a task for draws. The trainer's process calls it, from one thread, in this order:

    `publish` each version once, ascending; `submit` each draw once its version is published; `collect` or `cancel` each
    submitted draw once, in the order of submission; `forget` when an epoch ends or is broken off, after which draws may
    be submitted again; `close` at the end. Tasks are idempotent: a pool may do lost work again.
    """

    runs_beside: ClassVar[bool] = False
    """Whether it works in other processes than the trainer's: what it is given is sent there, and lies on the CPU."""

    queue_depth: int = 0
    """Draws that it is worth to have submitted ahead of those that the trainer's own workers make views of."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        """What the pool did when; the loader adds what the trainer did."""

    @classmethod
    @abstractmethod
    def built(cls, task: Task, mining: Mining, home: torch.device) -> tuple["Pool", tuple[str, ...]]:
        """The pool that settings ask for, and what its user should know, one line each.

        Args:
            task: what it does.
            mining: the settings, `auto` and defaults decided.
            home: the device that the trainer's model is on.

        Raises:
            ValueError: it cannot work there.
        """

    @classmethod
    def cores(cls, mining: Mining) -> tuple[Cores, Cores]:
        """The cores that it would have for itself, and those left to the trainer."""
        return (), available_cores()

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
        """Ask for a draw: the task at its addresses, with the weights of `version` (None: with none).

        Raises:
            ValueError: the version was never published.
        """

    @abstractmethod
    def is_ready(self, draw: int) -> bool:
        """Whether `collect` would not have to wait for anybody else."""

    @abstractmethod
    def collect(self, draw: int) -> Answer:
        """What came of a submitted draw; waits for it.

        Raises:
            OracleLostError: nobody is left to do it.
        """

    @abstractmethod
    def cancel(self, draw: int) -> None:
        """Do without the answer to a submitted draw, instead of collecting it."""

    @abstractmethod
    def seconds(self) -> dict[str, float]:
        """Wall-clock of the trainer's process spent so far, by what on: `views`, `scoring`, `publishing`."""

    def totals(self) -> dict[str, float]:
        """Running totals of refreshes and of the oracle's fidelity, see `infer2train.observe.metrics.window`."""
        return {}

    @abstractmethod
    def forget(self) -> None:
        """Forget what was submitted. Published records stay; may be called twice."""

    def close(self) -> None:
        """Forget what was submitted and stop all that was started. May be called twice; nothing is called after."""
        self.forget()


def check_answer(answer: Answer, draw: int, version: int | None, *, is_exact: bool = True) -> Answer:
    """The answer, if it is to that draw by that version.

    Args:
        answer: of a pool.
        draw: what it was asked for.
        version: by which it was asked for.
        is_exact: whether any other version is wrong.

    Raises:
        RuntimeError: a pool answered with something else. Never train on that.
    """
    is_right = answer.version == version if is_exact else (answer.version is None) == (version is None)
    if answer.draw != draw or not is_right:
        raise RuntimeError(
            f"scores must be of the draw and version asked for: got draw {answer.draw} by version {answer.version} "
            f"for draw {draw} by version {version}; this is a fault of the pool, please report it"
        )
    return answer


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


def at_exit(method: Callable[[], None]) -> Callable[[], None]:
    """Have a method called, if its object is still there, when the interpreter ends: before `multiprocessing` waits for
    processes, and before modules are taken apart. The result takes that back."""

    def call(method: "weakref.WeakMethod[Callable[[], None]]", owner: int) -> None:
        # Not in a process that the user has forked from this one.
        if os.getpid() == owner and (there := method()) is not None:
            there()

    hook = partial(call, weakref.WeakMethod(method), os.getpid())
    atexit.register(hook)
    return lambda: atexit.unregister(hook)
