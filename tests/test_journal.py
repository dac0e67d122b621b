"""What anybody's loop writes down is what `train` does: rows, events, the timeline of the last steps, the report."""

import time
from pathlib import Path
from typing import Any

import pytest

from conformance.method import draw_at, made
from infer2train import mine
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.loader.journal import Journal
from infer2train.observe.runlog import RunLog, read_rows
from infer2train.observe.timeline import TRAINER, Timeline
from infer2train.reporting.lanes import lanes, load_timeline
from mined_runs import draws, jittered, network, sgd

pytestmark = pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning")


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder) if row["kind"] == kind]


def test_a_loop_of_ones_own_leaves_rows_lanes_and_a_report(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, optimizer, gamma=2, update_every=2, log_every=2, log_dir=tmp_path)
    for _ in range(2):
        assert len(list(draws(loader, model, optimizer))) == 10
    assert lanes(load_timeline(tmp_path)) == [TRAINER, "oracle"]
    trained = [span.details["draw"] for span in load_timeline(tmp_path) if span.name == "train"]
    assert trained == list(range(10, 20)), "of the last epoch"
    loader.close()
    assert [row["step"] for row in rows_of(tmp_path, "step")] == list(range(2, 21, 2))
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("method", "mined"), [("baseline", []), ("nm-augment", [1, 4, 7, 10])])
def test_rows_in_which_nothing_was_mined_say_nothing_of_lag_and_scores(
    method: str, mined: list[int], tmp_path: Path
) -> None:
    model = network()
    optimizer = sgd(model)
    settings: dict[str, Any] = {"gamma": 2, "update_every": 2, "mine_every": 3, "log_every": 1}
    loader = mine(jittered(40), model, optimizer, method=method, log_dir=tmp_path, **settings)
    list(draws(loader, model, optimizer))
    loader.close()
    for name in ("lag", "score_mean", "score_chosen"):
        assert [row["step"] for row in rows_of(tmp_path, "step") if name in row] == mined


def test_time_between_epochs_and_away_from_training_is_not_of_the_steps(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    loader = mine(jittered(40), model, optimizer, method="baseline", log_every=5, log_dir=tmp_path)
    list(draws(loader, model, optimizer))
    time.sleep(1.0)
    for draw in draws(loader, model, optimizer):
        if draw.number == 16:
            loader.journal.pause()
            time.sleep(1.0)
            loader.journal.go_on()
    loader.close()
    rates = [row["steps_per_second"] for row in rows_of(tmp_path, "step")]
    assert len(rates) == 4
    assert min(rates) > 5, "five steps and a second would be less"


def test_what_befalls_an_oracle_is_written_and_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    totals: dict[str, float] = {"seconds": 0.0, "draws": 0.0}
    journal = Journal(Mining(log_every=2), choices_of(Mining()), lambda: 10, Timeline(), lambda: dict(totals))
    journal.write_to(
        lambda is_new: RunLog(tmp_path, tensorboard=False),
        more=lambda: {"loss": 1.5},
        warn=said.append,
        report=False,
    )
    journal.begin(is_new=True, draws=0)
    draw = draw_at(made("nm-augment"), 1.0)
    for step in (1, 2, 3):
        totals |= {"skipped_draws": float(step), "seconds": float(step), "draws": float(step)}
        journal.step(step, draw)
    journal.close()
    assert [row["event"] for row in rows_of(tmp_path, "event")] == ["draws-skipped"]
    assert len(said) == 1
    (row,) = rows_of(tmp_path, "step")
    assert (row["step"], row["loss"], row["version"], row["steps_per_second"]) == (2, 1.5, 0, 1.0)
