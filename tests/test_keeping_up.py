"""Whether the oracle keeps up: from the accounting alone, without a clock."""

import re
from typing import Any

import pytest

from infer2train.observe.keeping_up import FEWEST_DRAWS, Accounts, Waits, warning
from infer2train.observe.timeline import TRAINER, Span


def accounts(**changes: Any) -> Accounts:
    """100 draws for which the trainer has 10 s: an oracle that needs 4 s keeps up with it."""
    settings: dict[str, Any] = {
        **{"draws": 100, "waiting_seconds": 0.1, "trainer_seconds": 10.0, "scoring_seconds": 4.0},
        **{"refresh_seconds": 0.0, "behind_seconds": 0.0, "versions": 0, "workers": 1, "oracle": "openvino:int8"},
        **{"gamma": 10, "mine_every": 1, "update_every": 100, "delay_steps": 0, "queue_depth": 4},
    }
    return Accounts(**{**settings, **changes})


def remedies(**changes: Any) -> dict[str, int]:
    message = warning(accounts(waiting_seconds=5.0, **changes))
    assert message is not None
    return {flag: int(value) for flag, value in re.findall(r"(?:: |; |with )([a-z_]+) (\d+)", message)}


def test_a_trainer_that_hardly_waits_is_not_warned() -> None:
    assert warning(accounts(waiting_seconds=0.5)) is None
    assert warning(accounts(waiting_seconds=0.6)) is not None


def test_a_few_draws_say_nothing() -> None:
    assert warning(accounts(waiting_seconds=9.0, draws=FEWEST_DRAWS - 1)) is None
    assert warning(accounts(waiting_seconds=9.0, draws=FEWEST_DRAWS)) is not None


def test_it_says_by_how_much_the_oracle_is_too_slow() -> None:
    message = warning(accounts(waiting_seconds=15.0, scoring_seconds=25.0))
    assert message is not None
    assert "waited 60 % of the last 100 mined draws" in message
    assert "takes the oracle 250 ms, the trainer does its part in 100 ms: 2.5 times too slow" in message


SLOW = {
    "scoring": {"scoring_seconds": 25.0},
    "with refreshes": {"scoring_seconds": 20.0, "refresh_seconds": 3.0},
    "two workers": {"scoring_seconds": 50.0, "refresh_seconds": 4.0, "workers": 2},
    "every third step": {"scoring_seconds": 25.0, "mine_every": 3},
    "mostly refreshes": {"scoring_seconds": 4.0, "refresh_seconds": 9.0},
}


@pytest.mark.parametrize("name", SLOW)
def test_each_remedy_by_itself_is_enough_and_no_more_than_that(name: str) -> None:
    slow = SLOW[name]
    made = accounts(**slow)
    assert made.load > 1
    found = remedies(**slow)

    def load(setting: str, value: int) -> float:
        """The load over the same steps, with one setting changed."""
        scoring, refresh, workers = made.scoring_seconds, made.refresh_seconds, made.workers
        if setting == "gamma":
            scoring *= value / made.gamma
        elif setting == "mine_every":
            scoring *= made.mine_every / value
        elif setting == "update_every":
            refresh *= made.update_every / value
        elif setting == "oracle_workers":
            scoring, refresh = scoring * workers / value, refresh  # every worker refreshes by itself
        return accounts(**{**slow, "scoring_seconds": scoring, "refresh_seconds": refresh}).load

    assert {"gamma", "mine_every", "oracle_workers"} <= found.keys()
    assert ("update_every" in found) == (name == "mostly refreshes")
    for setting, value in found.items():
        assert load(setting, value) <= 1 + 1e-9
        easier = value + 1 if setting == "gamma" else value - 1
        assert load(setting, easier) > 1, f"{setting} {easier} would have been enough"


def test_where_refreshes_alone_take_too_long_scoring_less_is_not_advised() -> None:
    assert remedies(scoring_seconds=4.0, refresh_seconds=12.0).keys() == {"update_every"}
    both = remedies(scoring_seconds=14.0, refresh_seconds=12.0, mine_every=2)
    assert both == {"update_every": 300, "mine_every": 6}, "26 s of work in 10 s: a third of it"


@pytest.mark.parametrize(
    ("oracle", "is_float"),
    [("torch:fp32", True), ("torch:bf16@cuda", True), ("openvino:int8", False), ("simulated:b8", False)],
)
def test_int8_is_advised_to_floats_alone(oracle: str, is_float: bool) -> None:
    message = warning(accounts(oracle=oracle, waiting_seconds=5.0, scoring_seconds=25.0))
    assert message is not None
    assert ("oracle int8" in message) == is_float


@pytest.mark.parametrize(("versions", "delay"), [(30, 1), (6, 3), (2, 8)])
def test_waiting_at_new_versions_is_hidden_by_as_many_steps_of_delay_as_it_lasts(versions: int, delay: int) -> None:
    """1.5 s of waiting for so many versions, in steps of 0.1 s."""
    changes = {"waiting_seconds": 2.0, "behind_seconds": 1.5, "versions": versions}
    message = warning(accounts(**changes))
    assert message is not None
    assert f"delay_steps {delay} " in message
    assert ("queue_depth 8" in message) == (delay == 8), "as many draws must be on their way as steps are hidden"
    assert "gamma" not in message
    more = warning(accounts(delay_steps=2, **changes))
    assert more is not None
    assert f"delay_steps {delay + 2} " in more


def test_waiting_anywhere_else_with_time_to_spare_is_no_matter_of_delay() -> None:
    message = warning(accounts(waiting_seconds=2.0, behind_seconds=0.5, versions=3))
    assert message is not None
    assert "delay_steps" not in message
    assert "60 % of its time left" in message


def test_waits_are_told_apart_by_the_version_that_scored() -> None:
    waits = Waits(draws_per_epoch=5)
    versions = {0: 0, 1: 0, 2: 2, 3: 2, 4: 4, 5: 4, 6: 6}
    for draw, version in versions.items():
        waits.add(Span("oracle 0", "forward", 0.0, 0.1, {"draw": draw, "version": version}))
    for draw in versions:
        waits.add(Span(TRAINER, "scores", 10.0 * draw, 2.0**draw / 64, {"draw": draw}))
        waits.add(Span(TRAINER, "train", 10.0 * draw + 5, 1.0, {"draw": draw}))
    assert waits.draws == 5, "without the first of each epoch"
    assert waits.seconds == (2 + 4 + 8 + 16 + 64) / 64
    assert (waits.behind_seconds, waits.versions) == ((4 + 16 + 64) / 64, 3)
    assert waits.own_seconds == 50 - (1 + 2 + 4 + 8 + 32) / 64
    waits.clear()
    assert (waits.draws, waits.seconds, waits.behind_seconds) == (0, 0.0, 0.0)
