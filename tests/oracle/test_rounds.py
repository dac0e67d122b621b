"""Turns by a scripted clock: what a call takes in each round is written down, and so is what must come out."""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter, process_time

import pytest

from infer2train.oracle.rounds import Contestant, clocks_of, fastest, spread, take_turns


class Machine:
    """A clock that only calls move, and who has called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def contestant(
        self, name: str, seconds: Sequence[float], group: str = "", work: float = 1.0, turn: float = 0.0
    ) -> Contestant:
        """One whose calls take these seconds, the last ones for ever."""
        return Contestant(
            name=name,
            call=self._call(name, iter(seconds), seconds[-1]),
            group=group,
            work=work,
            seconds=turn,
            clocks=(lambda: self.now,),
        )

    def _call(self, name: str, seconds: Iterator[float], last: float) -> Callable[[], None]:
        def call() -> None:
            self.called.append(name)
            self.now += next(seconds, last)

        return call


def test_a_round_in_which_one_was_disturbed_does_not_change_its_figure() -> None:
    machine = Machine()
    trainer = machine.contestant("trainer", [0.4, 0.2, 0.2, 0.4], work=64)
    engine = machine.contestant("engine", [0.1, 0.1, 0.1, 0.1], work=320)
    assert take_turns([trainer, engine], rounds=4) == 4
    assert machine.called == ["trainer", "engine"] * 4, "in turn, not one after the other"
    assert trainer.rate == pytest.approx(320)
    assert trainer.rates == pytest.approx((160, 320, 320, 160))
    assert engine.rate == pytest.approx(3200)
    assert (spread(trainer.rates), spread(engine.rates)) == pytest.approx((2, 1))


def test_of_a_group_the_slower_half_goes_until_the_fastest_is_left() -> None:
    machine = Machine()
    seconds = {"a": [1.3], "b": [3.0, 1.0], "c": [1.1], "d": [1.2]}  # b is disturbed at first
    group = [machine.contestant(name, taken, group="chunks") for name, taken in seconds.items()]
    alone = machine.contestant("alone", [9.0])
    take_turns([*group, alone], rounds=6)
    assert {one.name: len(one.rounds) for one in group} == {"a": 2, "b": 6, "c": 4, "d": 2}
    assert len(alone.rounds) == 6
    assert fastest(group).name == "b"


def test_the_most_work_in_a_second_is_fastest_not_the_shortest_call() -> None:
    machine = Machine()
    group = [machine.contestant(str(rows), [taken], "chunks", rows) for rows, taken in ((8, 1.0), (64, 4.0))]
    take_turns(group, rounds=1)
    assert fastest(group).name == "64"


def test_what_is_hopelessly_slow_is_called_once() -> None:
    machine = Machine()
    quick, slow = machine.contestant("quick", [1.0], "ways"), machine.contestant("slow", [4.5], "ways")
    take_turns([quick, slow], rounds=2)
    assert machine.called == ["quick", "slow", "quick"]


def test_a_short_call_is_timed_with_the_caches_full_and_a_long_one_is_not_made_for_nothing() -> None:
    machine = Machine()
    short = machine.contestant("short", [0.09, 0.01], turn=0.1)
    long = machine.contestant("long", [0.5], turn=0.1)
    take_turns([short, long], rounds=1)
    assert short.rounds == pytest.approx([0.01])
    assert machine.called.count("short") in (11, 12)
    assert machine.called.count("long") == 1


def test_some_are_timed_in_the_first_rounds_only() -> None:
    machine = Machine()
    part = machine.contestant("part", [1.0])
    part.most_rounds = 2
    take_turns([part], rounds=5)
    assert len(part.rounds) == 2


def test_what_others_take_of_the_core_is_not_counted_where_a_clock_leaves_it_out() -> None:
    wall, cpu = [0.0], [0.0]

    def call() -> None:
        wall[0] += 0.4
        cpu[0] += 0.2

    one = Contestant(name="one", call=call, seconds=0.0, clocks=(lambda: wall[0], lambda: cpu[0]))
    take_turns([one], rounds=1)
    assert one.rounds == pytest.approx([0.2])


def test_several_threads_are_timed_by_the_wall() -> None:
    assert set(clocks_of(1)) <= {perf_counter, process_time}
    assert clocks_of(2) == (perf_counter,)
