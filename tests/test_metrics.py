"""Windows on running totals: what came between two marks, and nothing else."""

import pytest

from infer2train.observe.metrics import Meter, draws_per_second, scalars, window


def test_readers_with_marks_of_their_own_do_not_disturb_one_another() -> None:
    meter = Meter()
    meter.add(draws=2, duplicates=1)
    early = meter.totals(seconds=1.0)
    meter.add(draws=3)
    late = meter.totals(seconds=3.0)
    meter.add(draws=5, duplicates=4)
    now = meter.totals(seconds=7.0)
    assert [window(now, mark)["draws"] for mark in ({}, early, late, now)] == [10, 8, 5, 0]
    assert [window(now, mark)["duplicates"] for mark in ({}, early, late, now)] == [5, 4, 4, 0]
    assert window(now, late)["seconds"] == 4.0
    assert early["draws"] == 2, "a mark does not move"


def test_means_are_over_what_they_count() -> None:
    mark = {"mined_draws": 10.0, "lag_sum": 1000.0, "examples": 1.0, "seconds": 5.0}
    now = {
        "draws": 8.0,
        "mined_draws": 14.0,
        "lag_sum": 1010.0,
        "examples": 401.0,
        "mined_examples": 100.0,
        "scored": 50.0,
        "score_sum": 25.0,
        "chosen": 4.0,
        "chosen_sum": 8.0,
        "waiting_seconds": 9.0,
        "views_seconds": 1.0,
        "scoring_seconds": 2.0,
        "publishing_seconds": 0.5,
        "seconds": 12.0,
    }
    measured = window(now, mark)
    assert measured["lag"] == 2.5
    assert measured["mined_share"] == 0.25
    assert (measured["score_mean"], measured["score_chosen"]) == (0.5, 2.0)
    assert measured["scoring_share"] == pytest.approx(3.5 / 7), "waiting is the sum of the others and more"
    assert draws_per_second(measured) == pytest.approx(8 / 7)


def test_nothing_measured_is_zero_and_no_error() -> None:
    assert set(window({}, {}).values()) == {0.0}
    assert draws_per_second(window({}, {})) == 0.0


def test_scalars_are_the_numbers() -> None:
    row = {"kind": "step", "step": 3, "loss": 0.5, "penalty": None, "done": True, "seconds": {"total": 1.0}}
    assert scalars(row) == {"step": 3.0, "loss": 0.5}
