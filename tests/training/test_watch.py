"""Where the time of a run goes, as its rows and its timeline say; what befell its oracle, as its events say."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infer2train.draws.mining import Mining
from infer2train.loader.health import Health
from infer2train.observe.keeping_up import FEWEST_DRAWS
from infer2train.observe.runlog import RunLog, read_rows
from infer2train.observe.timeline import TRAINER, Span, Timeline
from infer2train.reporting.lanes import lanes, load_timeline
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.loop import train
from infer2train.training.progress import RunProgress
from infer2train.training.regimes import regime_defaults

TINY = {"epochs": 2, "batch_size": 40, "gamma": 2, "threads": 1, "train_error_samples": 0, "update_every": 2}


def config(method: str, **changes: Any) -> RunConfig:
    return from_plain({**regime_defaults("digits", method), **TINY, **changes})


@pytest.fixture(scope="module", params=["nm-augment", "baseline"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 2 x 5 steps. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    train(config(request.param, log_every=2), folder, quiet=True, report=False)
    return folder


def test_rows_split_the_time_by_what_was_done_in_it(run: Path) -> None:
    rows = [row for row in read_rows(run) if row["kind"] == "step"]
    assert rows
    parts = {"trainer_views_seconds", "trainer_train_seconds"}
    if run.name == "nm-augment":
        parts |= {"trainer_scores_seconds", "trainer_publish_seconds"}
        parts |= {"oracle_views_seconds", "oracle_forward_seconds", "oracle_refresh_seconds"}
    for row in rows:
        assert {name for name in row if name.startswith(("trainer_", "oracle_"))} == parts
        whole = 2 / row["steps_per_second"]
        assert 0 < sum(row[name] for name in parts if name.startswith("trainer_")) <= whole
        oracle = sum(row[name] for name in parts if name.startswith("oracle_"))
        assert oracle <= row.get("trainer_scores_seconds", 0.0), "an inline oracle works while the trainer waits"


def test_epochs_have_the_making_of_picked_views_apart(run: Path) -> None:
    for row in read_rows(run):
        if row["kind"] == "epoch":
            parts = {name: value for name, value in row["seconds"].items() if name != "total"}
            assert parts["batches"] > 0
            assert parts["training"] > 0
            assert sum(parts.values()) == pytest.approx(row["seconds"]["total"])


def test_the_timeline_is_of_the_last_epoch(run: Path) -> None:
    spans = load_timeline(run)
    assert lanes(spans) == ([TRAINER, "oracle"] if run.name == "nm-augment" else [TRAINER])
    trained = [span.details["draw"] for span in spans if (span.lane, span.name) == (TRAINER, "train")]
    assert trained == [5, 6, 7, 8, 9]
    scored = {span.details["draw"] for span in spans if span.name == "forward"}
    assert scored == ({5, 6, 7, 8, 9} if run.name == "nm-augment" else set())


class Watched:
    """The health of a run whose timeline and totals a test makes up."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        mining = Mining(**{"gamma": 2, "update_every": 2, "pool": "process", **changes})
        self.folder, self.timeline = folder, Timeline()
        self.console = Console(file=io.StringIO(), width=1000)
        warn = RunProgress("run", 1, quiet=True, console=self.console).warn
        self.health = Health(mining, 5, self.timeline, RunLog(folder, tensorboard=False), warn)
        self.draws, self.now = 0, {"oracle_available_seconds": 0.0, "oracle_forward_seconds": 0.0}

    def mine(self, draws: int, *, waiting: float, forward: float) -> None:
        """So many draws, each with a second of the trainer's own after its wait."""
        for _ in range(draws):
            details = {"draw": self.draws, "version": 0}
            started = self.draws * (1 + waiting)
            self.timeline.add(Span("oracle 0", "forward", started, forward, details))
            self.timeline.add(Span(TRAINER, "scores", started, waiting, details))
            self.draws += 1
            self.now["oracle_forward_seconds"] += forward
            self.health.step(self.draws, dict(self.now))

    def events(self) -> list[tuple[str, str]]:
        return [(row["event"], row["message"]) for row in read_rows(self.folder) if row["kind"] == "event"]

    def said(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()


def test_a_slow_oracle_is_told_once_and_not_of_its_first_draws(tmp_path: Path) -> None:
    watched = Watched(tmp_path, oracle="torch:fp32", gamma=6)
    watched.mine(70, waiting=1.0, forward=2.0)
    assert watched.events() == [], "it has only just begun"
    watched.mine(300, waiting=1.0, forward=2.0)
    ((event, message),) = watched.events()
    assert event == "oracle-too-slow"
    assert "waited 50 %" in message
    assert "gamma 2" in message or "gamma 3" in message
    assert "oracle int8" in message
    assert watched.said().count(message) == 1, "in a quiet run too"


def test_an_oracle_that_keeps_up_is_not_spoken_of(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.mine(4 * FEWEST_DRAWS, waiting=0.01, forward=0.5)
    assert watched.events() == []
    assert watched.said() == ""


def test_each_worker_that_was_replaced_is_an_event_with_its_reason(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for why in ("was killed by SIGKILL while scoring", "gave no sign of life"):
        watched.timeline.add(Span("oracle 1", "lost", 1.0, 0.0, {"why": why}))
    assert watched.events() == [
        ("worker-restarted", "oracle 1 was killed by SIGKILL while scoring"),
        ("worker-restarted", "oracle 1 gave no sign of life"),
    ]


@pytest.mark.parametrize(("name", "event"), [("skipped_draws", "draws-skipped"), ("oracle_lost_draws", "oracle-lost")])
def test_draws_that_go_without_an_oracle_are_told_of_once(tmp_path: Path, name: str, event: str) -> None:
    watched = Watched(tmp_path)
    for count in (0.0, 1.0, 2.0):
        watched.health.step(int(count), {name: count})
    ((found, message),) = watched.events()
    assert found == event
    assert message in watched.said()
