"""The live line: what trainer and oracle spend their time on, and what must not be overlooked."""

import io

import pytest
from rich.console import Console

from infer2train.training.progress import ACCIDENTS, RunProgress, line

FIGURES = {"steps_per_second": 3.4, "loss": 1.23, "lag": 42.0, "scoring_share": 0.43}
OF_PROCESSES = {**FIGURES, "waiting_share": 0.02, "oracle_busy": 0.61}


def test_an_oracle_in_the_trainers_time_is_told_as_scoring() -> None:
    assert line(FIGURES, {}) == "3.4 steps/s · loss 1.230 · lag 42 · scoring 43 %"


def test_an_oracle_beside_the_trainer_is_told_as_waiting_and_busy() -> None:
    told = line({**OF_PROCESSES, "captured_gain": 0.98}, {})
    assert told == "3.4 steps/s · loss 1.230 · lag 42 · waiting 2 % · oracle 61 % busy · captured gain 0.98"


def shown(windows: list[dict[str, float]]) -> str:
    """What a terminal of colours shows after these windows."""
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system="standard")
    with RunProgress("run", 10, console=console) as progress:
        for step, window in enumerate(windows):
            progress.step(step, {**OF_PROCESSES, **window})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ACCIDENTS)
def test_an_accident_is_red_and_counted_over_the_run(name: str) -> None:
    text = shown([{name: 2.0}, {}, {name: 1.0}, {}])
    assert f"\x1b[1;31m3 {ACCIDENTS[name].upper()}\x1b[0m" in text
    assert ACCIDENTS[name].upper() not in shown([{}, {name: 0.0}])


def test_the_captured_gain_stays_until_the_next_refresh() -> None:
    assert "captured gain 0.75" in shown([{"captured_gain": 0.75}, {}])
    assert "captured gain" not in shown([{}])
