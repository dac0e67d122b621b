"""Rule V against a simulation that publishes and looks for the newest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer2train.draws.versions import EpochSteps, VersionRule

EVERY = st.integers(1, 12)
DELAY = st.integers(0, 30)


def newest(every: int, delay: int, step: int) -> int:
    """Version 0 is published before the first step, then one at each multiple; what is newer than s − D is not used."""
    newest = 0
    for done in range(1, step + 1):
        if done % every == 0 and done <= step - delay:
            newest = done
    return newest


@given(every=EVERY, delay=DELAY, step=st.integers(0, 80))
def test_the_newest_published_at_or_before_the_delay(every: int, delay: int, step: int) -> None:
    rule = VersionRule(update_every=every, delay_steps=delay)
    assert rule.version_of_step(step) == newest(every, delay, step)


@given(every=EVERY, delay=DELAY, step=st.integers(0, 80))
def test_what_is_asked_for_is_published_and_the_lag_bounded(every: int, delay: int, step: int) -> None:
    rule = VersionRule(update_every=every, delay_steps=delay)
    version = rule.version_of_step(step)
    assert rule.is_published(version)
    assert 0 <= version <= step
    assert step - version <= every - 1 + delay
    assert version <= rule.version_of_step(step + 1), "versions never go back, so older ones may be forgotten"


@given(every=EVERY, step=st.integers(0, 80))
def test_without_delay_it_is_algorithm_1(every: int, step: int) -> None:
    """`if i mod T_update == 0: update the oracle`, then score with what it holds."""
    oracle = None
    for i in range(step + 1):
        if i % every == 0:
            oracle = i
    assert VersionRule(update_every=every).version_of_step(step) == oracle


@given(every=EVERY, ahead=st.integers(0, 20))
def test_a_delay_as_long_as_the_loop_fetches_ahead_always_does_and_a_shorter_one_does_not(
    every: int, ahead: int
) -> None:
    def works(delay: int) -> bool:
        rule = VersionRule(update_every=every, delay_steps=delay)
        return all(rule.version_of_step(step) <= max(0, step - ahead) for step in range(5 * every + ahead + 5))

    assert works(ahead)
    assert ahead == 0 or not works(ahead - 1)


@given(every=EVERY)
def test_published_are_the_multiples(every: int) -> None:
    rule = VersionRule(update_every=every, delay_steps=3)
    assert [step for step in range(40) if rule.is_published(step)] == list(range(0, 40, every))


@pytest.mark.parametrize(("step", "version"), [(0, 0), (99, 0), (100, 100), (150, 100), (199, 100), (200, 200)])
def test_the_design_s_own_numbers(step: int, version: int) -> None:
    assert VersionRule(update_every=100).version_of_step(step) == version


@given(
    first_draw=st.integers(0, 1000),
    first_step=st.integers(0, 1000),
    accumulation=st.integers(1, 7),
    draws=st.integers(1, 60),
)
def test_steps_of_an_epoch_counted_one_draw_at_a_time(
    first_draw: int, first_step: int, accumulation: int, draws: int
) -> None:
    steps = EpochSteps(first_draw=first_draw, first_step=first_step, accumulation_steps=accumulation)
    step, micro_batches = first_step, 0
    for draw in range(first_draw, first_draw + draws):
        assert steps.step_of(draw) == step
        micro_batches += 1
        if micro_batches == accumulation:
            step, micro_batches = step + 1, 0


def test_an_incomplete_accumulation_does_not_reach_into_the_next_epoch() -> None:
    """Five draws at two a step are three steps, the last of one draw; the next epoch begins with a step of its own."""
    first = EpochSteps(first_draw=0, first_step=0, accumulation_steps=2)
    second = EpochSteps(first_draw=5, first_step=3, accumulation_steps=2)
    assert [first.step_of(draw) for draw in range(5)] == [0, 0, 1, 1, 2]
    assert [second.step_of(draw) for draw in range(5, 10)] == [3, 3, 4, 4, 5]
