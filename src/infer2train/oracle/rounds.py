"""Times that can be compared on a machine that others use too: everything that is timed takes its turn, round by round.

What is measured once, one after the other, meets the machine at different speeds. Here each contestant runs for a short
while in every round, and its fastest round counts: that is what the machine does when it is let. How far the others lie
from it is what the machine's other work costs.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import get_clock_info, perf_counter, process_time

from infer2train.machine.device import wait_for_gpu

ROUNDS = 20
"""Rounds at most."""
HALVING_ROUNDS = 2
"""After as many rounds the slower half of a group goes, until one is left, so that time is spent on what counts."""
TURN_SECONDS = 0.1
"""How long a turn lasts at least."""
BUDGET_SECONDS = 80.0
"""No round begins later than this, once `LEAST_ROUNDS` are over."""
LEAST_ROUNDS = 3
HOPELESS = 4.0
"""A contestant this many times slower than the fastest of its group is not timed again."""
FINE_SECONDS = 1e-3
"""Resolution that a clock of CPU time must have."""

Clock = Callable[[], float]
WALL: tuple[Clock, ...] = (perf_counter,)


def clocks_of(num_threads: int) -> tuple[Clock, ...]:
    """What a call on this machine's cores is timed by: the smallest of these clocks counts.

    One thread's CPU time leaves out what other processes take of its core. Several threads wait for each other, which
    is no CPU time; nor is the wait for another device.
    """
    is_fine = get_clock_info("process_time").resolution <= FINE_SECONDS  # on Windows it is not
    return (*WALL, process_time) if num_threads == 1 and is_fine else WALL


@dataclass(kw_only=True)
class Contestant:
    """Something that is timed, and its times."""

    name: str
    call: Callable[[], object]
    group: str = ""
    """Contestants that do the same; the fastest one's figure counts. Default: it is alone in its group."""
    work: float = 1.0
    """Of one call: images, operations."""
    seconds: float | None = None
    """How long a turn lasts at least; 0 is one call. Default: `TURN_SECONDS`."""
    most_rounds: int | None = None
    clocks: tuple[Clock, ...] = WALL
    place: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered for a turn: cores, threads."""
    rounds: list[float] = field(default_factory=list)
    """Seconds of a call, round by round."""

    @property
    def fastest_seconds(self) -> float:
        """Of a call, in the fastest round."""
        return min(self.rounds)

    @property
    def rates(self) -> tuple[float, ...]:
        """Work in a second, round by round."""
        return tuple(self.work / seconds for seconds in self.rounds)

    @property
    def rate(self) -> float:
        """Work in a second, in the fastest round."""
        return max(self.rates)


def fastest(contestants: Iterable[Contestant]) -> Contestant:
    """The one with the highest rate."""
    return max(contestants, key=lambda one: one.rate)


def spread(rounds: Sequence[float]) -> float:
    """How many times as slow as the fastest round the slowest one was; 1 where there is none.

    Example:
        >>> spread([200.0, 400.0, 100.0])
        4.0
    """
    return max(rounds) / min(rounds) if rounds else 1.0


def take_turns(
    contestants: Sequence[Contestant], *, rounds: int | None = None, say: Callable[[str], None] = lambda line: None
) -> int:
    """Time every contestant in several rounds; of a group fewer and fewer, in the end only its fastest.

    Args:
        contestants: their `rounds` are filled.
        rounds: at most. Default: `ROUNDS`.
        say: called at the beginning of each round.

    Returns:
        How many rounds there were.
    """
    rounds = ROUNDS if rounds is None else rounds
    left, started = list(contestants), perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and perf_counter() - started > BUDGET_SECONDS:
            return number
        say(f"round {number + 1} of {rounds}")
        for one in tuple(left):
            one.rounds.append(_turn(one))
            if one.rate * HOPELESS < max(other.rate for other in _group(one, contestants) if other.rounds):
                left.remove(one)
        if (number + 1) % HALVING_ROUNDS == 0:
            left = [one for one in left if _is_of_the_faster_half(one, left)]
        left = [one for one in left if one.most_rounds is None or len(one.rounds) < one.most_rounds]
    return rounds


def _group(one: Contestant, contestants: Iterable[Contestant]) -> list[Contestant]:
    return [other for other in contestants if other is one or (one.group and other.group == one.group)]


def _is_of_the_faster_half(one: Contestant, contestants: Iterable[Contestant]) -> bool:
    group = _group(one, contestants)
    return 2 * sum(other.rate > one.rate for other in group) < len(group)


def _turn(one: Contestant) -> float:
    """Seconds of a call, the mean over a turn; a short call is first made once to fill the caches that others used."""
    seconds = TURN_SECONDS if one.seconds is None else one.seconds
    with one.place():
        first = _mean_seconds(one, 0.0)
        return first if first >= seconds else _mean_seconds(one, seconds)


def _mean_seconds(one: Contestant, least: float) -> float:
    """The mean, not the least: a call that is shorter than a time slice would otherwise never seem to be disturbed."""
    wait_for_gpu()
    started = [clock() for clock in one.clocks]
    calls = 0
    while calls == 0 or one.clocks[0]() - started[0] < least:
        one.call()
        calls += 1
    wait_for_gpu()
    return min(clock() - start for clock, start in zip(one.clocks, started, strict=True)) / calls
