"""From measured speeds to a verdict: hand-made machines whose answer is known."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer2train.oracle.measurement import EngineSpeed, end_to_end_gamma
from infer2train.studies.gamma.recommendation import gammas, hybrid_step_seconds, recommend


def engine(name: str = "openvino:int8", images_per_second: float = 3200.0, refresh_seconds: float = 0.1) -> EngineSpeed:
    return EngineSpeed(
        name=name,
        images_per_second=images_per_second,
        chunk=32,
        refresh_seconds=refresh_seconds,
        captured_gain=1.0,
    )


STEP = {"step_seconds": 0.2, "batch_size": 64, "views_per_second": float("inf")}


def test_gamma_counts_the_refresh_and_the_views_to_the_device_that_scores() -> None:
    assert end_to_end_gamma(3200, 0.0, step_seconds=0.2, batch_size=64, update_every=10) == pytest.approx(10)
    assert end_to_end_gamma(3200, 1.0, step_seconds=0.2, batch_size=64, update_every=10) == pytest.approx(5)
    halved = end_to_end_gamma(3200, 0.0, step_seconds=0.2, batch_size=64, update_every=10, views_per_second=3200)
    assert halved == pytest.approx(5)
    assert end_to_end_gamma(3200, 9.0, step_seconds=0.2, batch_size=64, update_every=10) == 0.0


def test_gamma_grows_with_the_steps_between_refreshes() -> None:
    found = gammas(engine(refresh_seconds=1.0), **STEP)
    assert list(found) == [10, 50, 100]
    assert found[10] < found[50] < found[100] < 10


@pytest.mark.parametrize(
    ("gamma", "verdict", "kept"), [(9, "FITS", 9), (15, "COSTS × 1.55", 15), (40, "DOES NOT FIT", 9)]
)
def test_verdicts(gamma: int, verdict: str, kept: int) -> None:
    found = recommend([engine()], gamma=gamma, **STEP)
    assert (found.verdict, found.gamma) == (verdict, kept)


def test_the_engine_with_the_highest_end_to_end_gamma_wins_not_the_fastest_one() -> None:
    slow_to_refresh = engine("a", images_per_second=4000, refresh_seconds=8.0)
    quick = engine("b", images_per_second=3000, refresh_seconds=0.02)
    found = recommend([slow_to_refresh, quick], gamma=5, **STEP)
    assert (found.engine, found.update_every) == ("b", 10)


def test_an_engine_whose_picks_are_not_the_models_is_the_last_resort() -> None:
    fast = replace(engine("fast", images_per_second=9000), captured_gain=0.2)
    good = engine("good", images_per_second=3000)
    assert recommend([fast, good], gamma=5, **STEP).engine == "good"
    assert recommend([fast, replace(good, captured_gain=None)], gamma=5, **STEP).engine == "good", "torch's own"
    assert recommend([fast, replace(good, captured_gain=0.1)], gamma=5, **STEP).engine == "fast", "none is better"


def test_t_is_the_smallest_at_which_a_refresh_is_not_noticed() -> None:
    assert recommend([engine(refresh_seconds=0.5)], gamma=5, **STEP).update_every == 50
    assert recommend([engine(refresh_seconds=99.0)], gamma=5, **STEP).update_every == 100


def test_the_delay_covers_refresh_and_first_draw() -> None:
    found = recommend([engine(refresh_seconds=0.19)], gamma=5, **STEP)
    assert found.delay_steps == 2, "0.19 s of refresh and 320 candidates in 0.1 s are two steps of 0.2 s"


HYBRID = {"step_seconds": 1.0, "refresh_seconds": 0.5, "update_every": 10}


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"draw_seconds": 0.5}, 1.1),  # each version's first draw waits for its refresh and its scores: 10 + 0.5 + 0.5
        ({"draw_seconds": 0.5, "delay_steps": 1}, 1.0),  # both fit into the one step before it
        ({"draw_seconds": 2.0, "delay_steps": 10}, 2.05),  # the oracle is the slower one, and refreshes in its own time
        ({"draw_seconds": 0.5, "publish_seconds": 0.5, "delay_steps": 2}, 1.05),
    ],
)
def test_a_step_beside_the_oracle_is_followed_draw_by_draw(settings: dict[str, float], seconds: float) -> None:
    assert hybrid_step_seconds(**{**HYBRID, **settings}) == pytest.approx(seconds)


@given(
    draw_seconds=st.floats(0.01, 3),
    refresh_seconds=st.floats(0, 5),
    update_every=st.integers(1, 30),
    delay_steps=st.integers(0, 40),
    queue_depth=st.integers(0, 8),
)
def test_no_step_is_shorter_than_trainer_and_oracle_allow(
    draw_seconds: float, refresh_seconds: float, update_every: int, delay_steps: int, queue_depth: int
) -> None:
    found = hybrid_step_seconds(
        step_seconds=1.0,
        draw_seconds=draw_seconds,
        refresh_seconds=refresh_seconds,
        update_every=update_every,
        delay_steps=delay_steps,
        queue_depth=queue_depth,
    )
    assert found >= 1.0 - 1e-9
    one_after_the_other = 1.0 + draw_seconds + refresh_seconds / update_every
    assert found <= one_after_the_other * (1 + 1 / update_every) + 1e-9 + refresh_seconds


@pytest.mark.parametrize(("images_per_second", "refresh_seconds"), [(1800.0, 0.2), (1750.0, 1.0), (2500.0, 9.0)])
def test_what_mining_costs_is_the_step_beside_an_oracle_that_is_the_slower_one(
    images_per_second: float, refresh_seconds: float
) -> None:
    speed = engine(images_per_second=images_per_second, refresh_seconds=refresh_seconds)
    found = recommend([speed], gamma=10, **STEP)
    beside = hybrid_step_seconds(
        step_seconds=0.2,
        draw_seconds=10 * 64 / images_per_second,
        refresh_seconds=refresh_seconds,
        update_every=found.update_every,
        delay_steps=200,
    )
    assert found.verdict == f"COSTS × {beside / 0.2:.2f}"


@pytest.mark.parametrize(("update_every", "delay_steps"), [(1, 10), (2, 8), (5, 10), (10, 20)])
def test_workers_that_take_turns_are_followed_over_more_than_a_version(update_every: int, delay_steps: int) -> None:
    found = hybrid_step_seconds(
        step_seconds=1.0,
        draw_seconds=6.0,
        refresh_seconds=0.0,
        update_every=update_every,
        delay_steps=delay_steps,
        workers=4,
    )
    assert found == pytest.approx(6 / 4, rel=0.03)


def disturbed(*rounds: float) -> EngineSpeed:
    """An engine that was seen at these images/s, its refresh free."""
    return EngineSpeed(
        name="a", images_per_second=max(rounds), chunk=32, refresh_seconds=0.0, captured_gain=1.0, rounds=rounds
    )


BUSY = {"gamma": 10, "step_rounds": [0.2] * 8, **STEP}


def test_one_slow_round_changes_neither_the_verdict_nor_what_is_said_of_it() -> None:
    found = recommend([disturbed(3500, 3500, 3400, 1000, 3500, 3400, 3500, 3500)], **BUSY)
    assert (found.verdict, found.otherwise) == ("FITS", ())
    slow_trainer = [0.2, 0.2, 0.9, 0.2, 0.2, 0.2, 0.2, 0.2]
    found = recommend([disturbed(*[2400.0] * 8)], **{**BUSY, "step_rounds": slow_trainer})
    assert (found.verdict, found.otherwise) == ("COSTS × 1.33", ())


def test_a_spread_that_straddles_the_verdict_is_told() -> None:
    found = recommend([disturbed(3500, 2500, 3500, 2500, 3500, 2500, 3500, 2500)], **BUSY)
    assert (found.verdict, found.otherwise) == ("FITS", ("COSTS × 1.28",))
    half = [0.15, 0.3] * 4
    found = recommend([disturbed(*[2900.0] * 8)], **{**BUSY, "step_rounds": half, "step_seconds": 0.15})
    assert (found.verdict, found.otherwise) == ("COSTS × 1.47", ("FITS",))
    found = recommend([disturbed(*[3100.0, 400.0] * 4)], **BUSY)
    assert (found.verdict, found.otherwise) == ("COSTS × 1.03", ("DOES NOT FIT",))


def test_a_machine_that_is_slower_for_both_at_once_raises_no_doubt() -> None:
    found = recommend([disturbed(*[3300.0, 1650.0] * 4)], **{**BUSY, "step_rounds": [0.2, 0.4] * 4})
    assert (found.verdict, found.otherwise) == ("FITS", ())


def test_another_price_is_no_other_verdict() -> None:
    found = recommend([disturbed(*[3000.0, 2500.0] * 4)], **BUSY)
    assert (found.verdict, found.otherwise) == ("COSTS × 1.07", ())
