"""A training that the oracle evaluates: it stops early, keeps the best version, and the trainer evaluates once."""

from pathlib import Path
from typing import Any

import pytest

from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.observe.runlog import read_rows
from infer2train.training.config import RunConfig, from_plain, unmined
from infer2train.training.folder import BEST, evaluate_folder, is_finished
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults

EPOCHS = 60
SETTINGS: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 40,
    "gamma": 2,
    "threads": 1,
    "train_error_samples": 20,
    "update_every": 4,
    "mine_every": 4,  # three draws in four leave the oracle idle
    "validation_split": 32,
    "lr": 1e-9,  # nothing is learned, so that some version is no better than the one before
    "pool": "process",
    "validation": "oracle",
    "stop_after": 1,
    "keep_best": True,
    "log_every": 1,
}


def test_it_ends_early_and_the_best_version_is_what_the_oracle_said_it_is(tmp_path: Path) -> None:
    config = from_plain({**regime_defaults("digits", "nm-augment"), **SETTINGS})
    folder = tmp_path / "run"
    result = train(config, folder, quiet=True, report=False)
    rows = list(read_rows(folder))
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert len(epochs) < EPOCHS
    assert is_finished(folder)
    assert [row.get("test_error") for row in epochs] == [None] * (len(epochs) - 1) + [result.evaluation.error]
    steps = [row["oracle_validation_loss"] for row in rows if row["kind"] == "step" and "oracle_validation_loss" in row]
    assert len(set(steps)) >= 2

    kept = load_checkpoint(folder / BEST)
    assert kept is not None
    assert kept.state["loss"] == min(
        row["oracle_validation_loss"] for row in rows if row.get("oracle_validation_version") == kept.step
    )
    best = evaluate_folder(folder, best=True)
    assert best.error == pytest.approx(kept.state["error"], abs=1e-6)
    assert best.loss == pytest.approx(kept.state["loss"], rel=1e-4)
    assert train(config, folder, resume=True, quiet=True, report=False).evaluation == result.evaluation
    assert len([row for row in read_rows(folder) if row["kind"] == "epoch"]) == len(epochs), "it has ended for good"


def test_nobody_compares_versions_that_nobody_evaluates() -> None:
    for given, got in (({"stop_after": 3}, "stop_after=3"), ({"keep_best": True}, "keep_best")):
        with pytest.raises(ValueError, match=f"got {got} with validation='trainer'; pass --validation oracle"):
            RunConfig(**given)
    chosen: dict[str, Any] = {"method": "nm-augment", "pool": "process", "validation": "oracle", "keep_best": True}
    with pytest.raises(ValueError, match="got validation_split=0, so by the test images"):
        RunConfig(**chosen)
    config = RunConfig(**chosen, stop_after=3, validation_split=100)
    assert unmined(config) == RunConfig(validation_split=100)
