"""What γ the data can feed: how long the candidates of a draw take to read, against a step of the trainer.

A few items are read when `mine()` is called, after others, so that files are open and code is warm. The trainer's
step is what its first draws take; then whoever asks for more candidates than can be read is told once.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.methods.method import Choices
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.machine.device import wait_for_gpu
from infer2train.observe.timeline import TRAINER, Span
from infer2train.pool.pools import pool_of

READ = 8
"""Candidates that are read to see how long it takes."""
UNJUDGED, JUDGED = 3, 7
"""Draws of the trainer that are left out, since things are warming up, and draws by whose median it is judged."""
MOST_TRIES, ENOUGH_SECONDS = 3, 0.02
"""They are read so often, or until it has taken so long."""
MOST_WORKERS = 64
"""More are nobody's remedy."""
WORTH_A_WARNING = 0.2
"""A draw whose candidates are read in less than this is not worth one (seconds)."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How fast candidates are read."""

    mining: Mining
    batch_size: int
    candidate_seconds: float
    """Reading and transforming one, in one process."""
    processes: int
    """That do it at a time."""
    num_oracles: int
    """Processes of oracles, of which each has as many of them."""
    loads_each_view: bool
    """Whether an item is loaded anew for each view of it."""

    @property
    def num_candidates(self) -> int:
        """In a draw."""
        return self.mining.gamma * self.batch_size

    @property
    def draw_seconds(self) -> float:
        """Reading the candidates of a draw."""
        return self.num_candidates * self.candidate_seconds / self.processes

    @property
    def note(self) -> str:
        """For whoever wants to know."""
        return (
            f"a candidate is read in {1000 * self.candidate_seconds:.2g} ms, by as many as {self.processes} processes "
            f"at a time: the data can feed gamma {self.mining.gamma} where training takes {self.draw_seconds:.2g} s or "
            "more from one mined draw to the next"
        )

    def warning(self, training_seconds: float, waiting_seconds: float) -> str | None:
        """What to do where less can be read than was asked for; None where it cannot be told, or hardly matters.

        Args:
            training_seconds: of the trainer, from one mined draw to the next.
            waiting_seconds: that it waits for scores besides. All candidates are read in both at most, whatever was
                measured at the start.
        """
        reading = min(self.draw_seconds, training_seconds + waiting_seconds)
        if reading <= training_seconds or reading < WORTH_A_WARNING:
            return None
        gamma = training_seconds / reading * self.mining.gamma
        times = math.ceil(reading / training_seconds)
        remedies = [f"gamma={int(gamma)}" if gamma >= 1 else f"mine_every={times * self.mining.mine_every}"]
        workers = math.ceil(self.processes * reading / training_seconds / self.num_oracles)
        if workers <= MOST_WORKERS:
            remedies.append(f"oracle_num_workers={workers} for each process of the oracle, with a core each")
        if self.loads_each_view:
            remedies.append("transform=, apart from the data set, so that an item is loaded once for all of its views")
        remedies.append("data stored decoded, or smaller")
        return (
            f"the data cannot feed gamma {self.mining.gamma}: the {self.num_candidates} candidates of a draw are read "
            f"in {reading:.2g} s (processes: {self.processes}), and training takes {training_seconds:.2g} s from one "
            f"mined draw to the next, enough for gamma {gamma:.2g}. Any of these would do: {'; '.join(remedies)}"
        )


def measured_feed(
    read: Callable[[Addresses], Any],
    ids: Int64[np.ndarray, " n"],
    mining: Mining,
    *,
    batch_size: int,
    num_workers: int,
    has_transform: bool,
) -> Feed | None:
    """How fast candidates are read here; None for methods that look at none.

    Args:
        read: makes the batch at addresses, in one process.
        ids: that may be read.
        mining: the settings.
        batch_size: examples in a draw.
        num_workers: processes that read for one oracle.
        has_transform: whether the transform is apart from the data.
    """
    choices = choices_of(mining)
    if not choices.looks_at_candidates or choices.candidates == "one-view":  # which is read to be trained on anyway
        return None
    at = _candidates(ids, choices, mining.gamma)
    seconds = _fastest(partial(read, at))
    kind = pool_of(mining)
    oracles, others = kind.cores(mining)
    num_oracles = mining.oracle_workers if kind.runs_beside else 1
    processes = num_oracles * max(1, num_workers)
    is_elsewhere = kind.runs_beside and not oracles  # on machines whose cores nobody here knows
    return Feed(
        mining=mining,
        batch_size=batch_size,
        candidate_seconds=seconds / len(at),
        processes=processes if is_elsewhere else max(1, min(processes, len(oracles or others))),
        num_oracles=num_oracles,
        loads_each_view=choices.candidates in ("views", "anchors") and not has_transform,
    )


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of a call; of several the fewest, where it is so short that anything else may lengthen it."""
    taken: list[float] = []
    while len(taken) < MOST_TRIES and sum(taken) < ENOUGH_SECONDS:
        started = perf_counter()
        call()
        taken.append(perf_counter() - started)
    return min(taken)


def _candidates(ids: Int64[np.ndarray, " n"], choices: Choices, gamma: int) -> Addresses:
    """Some, as the method makes them: views of one sample behind each other, or samples from all over."""
    views = min(gamma, READ) if choices.candidates in ("views", "anchors") else 1
    samples = max(1, READ // views)
    chosen = ids[np.linspace(0, len(ids) - 1, samples + 2).astype(np.int64)[1:-1]]
    chosen = np.repeat(chosen, views)
    return Addresses(chosen, seeds(0, Purpose.PROBE, slot=np.arange(len(chosen)), view=2))


class FeedWatch:
    """Follows the trainer's first draws, as a listener of the timeline, and warns once.

    Args:
        feed: how fast candidates are read.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._training, self._waiting = list[float](), list[float]()
        self._is_done = False

    def add(self, span: Span) -> None:
        """Take note of what the trainer did."""
        if span.lane != TRAINER or self._is_done:
            return
        if span.name == "scores":
            self._waiting.append(span.seconds)
        elif span.name == "train" and len(self._training) < UNJUDGED + JUDGED:
            started = perf_counter()
            wait_for_gpu()  # the loop may only have handed it work
            self._training.append(span.seconds + perf_counter() - started)
        if min(len(self._training), len(self._waiting)) >= UNJUDGED + JUDGED:
            self._judge()

    def _judge(self) -> None:
        self._is_done = True
        training, waiting = (float(np.median(seconds[UNJUDGED:])) for seconds in (self._training, self._waiting))
        if (said := self._feed.warning(training * self._feed.mining.mine_every, waiting)) is not None:
            warnings.warn(said, RuntimeWarning, stacklevel=2)
