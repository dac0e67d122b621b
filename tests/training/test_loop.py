"""A whole training in this process: what it computes, what it writes down, what it leaves on the disk."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from infer2train.checkpoint.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from infer2train.loader.loader import MinedLoader
from infer2train.observe.picks import read_picks
from infer2train.observe.runlog import RunLog, read_config, read_rows
from infer2train.reporting.gallery import load_gallery
from infer2train.settings import as_plain
from infer2train.training import loop
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.folder import Result, evaluate_folder, is_finished, result_of
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import prepare, resolved
from infer2train.training.step import EpochSums, train_step

TINY = {"epochs": 2, "batch_size": 40, "gamma": 2, "threads": 1, "train_error_samples": 20, "update_every": 4}


def config(method: str = "nm-augment", **changes: Any) -> RunConfig:
    return from_plain({**regime_defaults("digits", method), **TINY, **changes})


def trained(folder: Path, method: str = "nm-augment", **changes: Any) -> Result:
    return train(config(method, **changes), folder, quiet=True, report=False)


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder) if row["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of nm-augment that logs every step. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, log_every=1, lr_drops=(1,), checkpoint_every=3)
    return folder


def test_it_is_the_plain_loop_over_mined_draws(run: Path) -> None:
    """The same weights as by the loop that anybody would write with the parts."""
    plain = prepare(resolved(config(lr_drops=(1,))))
    sums = EpochSums()
    for epoch in range(2):
        for images, targets in plain.loader:
            for group in plain.optimizer.param_groups:
                group["lr"] = 0.05 if epoch == 0 else 0.005
            train_step(plain, images, targets, sums)
    checkpoint = load_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 10
    stored = checkpoint.state["model"]
    assert stored.keys() == plain.model.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in plain.model.state_dict().items())


def test_step_rows(run: Path) -> None:
    steps = rows(run, "step")
    assert [row["step"] for row in steps] == list(range(1, 11))
    assert [row["draw"] for row in steps] == list(range(10))
    assert [row["epoch"] for row in steps] == [0] * 5 + [1] * 5
    assert [row["version"] for row in steps] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert [row["lag"] for row in steps] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [row["lr"] for row in steps] == [0.05] * 5 + [0.005] * 5
    assert all(row["score_chosen"] > row["score_mean"] for row in steps)
    assert all(row["penalty"] is None and row["penalty_gradient_ratio"] is None for row in steps)


def test_epoch_rows_add_up(run: Path) -> None:
    steps, epochs = rows(run, "step"), rows(run, "epoch")
    assert [(row["epoch"], row["step"]) for row in epochs] == [(0, 5), (1, 10)]
    for row in epochs:
        losses = [step["loss"] for step in steps if step["epoch"] == row["epoch"]]
        assert row["loss"] == pytest.approx(sum(losses) / 5)
        parts = {name: value for name, value in row["seconds"].items() if name != "total"}
        assert {"views", "scoring", "publishing", "training", "evaluation"} <= parts.keys()
        assert row["seconds"]["total"] == pytest.approx(sum(parts.values()))
        assert row["train_error_mined"] * 200 == pytest.approx(round(row["train_error_mined"] * 200))
        assert row["train_error_random"] * 20 == pytest.approx(round(row["train_error_random"] * 20))
        assert row["test_error"] * 1597 == pytest.approx(round(row["test_error"] * 1597))
    assert epochs[1]["seconds"]["checkpoint"] > 0


def test_what_lies_in_the_folder(run: Path) -> None:
    assert read_config(run) == as_plain(resolved(config(log_every=1, lr_drops=(1,), checkpoint_every=3)))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000009",
        "step-00000010",
    ]
    (start,) = rows(run, "start")
    assert start["machine"]["device"] == "cpu"
    assert start["machine"]["threads"] == 1
    assert start["versions"]["torch"] == torch.__version__
    assert [row["event"] for row in rows(run, "event")] == ["finished"]
    assert {row.epoch for row in load_gallery(run)} == {0, 1}


def test_the_result_is_the_last_epochs(run: Path) -> None:
    result, (_, last) = result_of(run), rows(run, "epoch")
    assert is_finished(run)
    assert result.evaluation.error == last["test_error"]
    assert result.evaluation == evaluate_folder(run)
    total = [row["seconds"] for row in rows(run, "epoch")]
    assert result.seconds == pytest.approx(sum(seconds["total"] for seconds in total))
    mining = sum(seconds[name] for seconds in total for name in ("views", "scoring", "publishing"))
    assert result.scoring_share == pytest.approx(mining / result.seconds)
    assert 0 < result.scoring_share < 1


def test_rows_and_training_error_only_as_often_as_asked(tmp_path: Path) -> None:
    trained(tmp_path / "run", "baseline", log_every=4, train_error_samples=0)
    assert [row["step"] for row in rows(tmp_path / "run", "step")] == [4, 8]
    assert [row["train_error_random"] for row in rows(tmp_path / "run", "epoch")] == [None, None]
    assert [row["version"] for row in rows(tmp_path / "run", "step")] == [None, None]


def test_evaluated_only_as_often_as_asked_and_at_the_end(tmp_path: Path) -> None:
    result = trained(tmp_path / "run", "baseline", epochs=3, evaluate_every=2)
    logged = [row.get("test_error") for row in rows(tmp_path / "run", "epoch")]
    assert [error is not None for error in logged] == [False, True, True]
    assert result.evaluation.error == logged[-1]


def test_logging_changes_nothing_that_is_computed(tmp_path: Path, run: Path) -> None:
    trained(tmp_path / "run", log_every=7, train_error_samples=0, checkpoint_every=100, lr_drops=(1,))
    one, other = (load_checkpoint(folder / "checkpoints") for folder in (run, tmp_path / "run"))
    assert one is not None
    assert other is not None
    assert all(torch.equal(other.state["model"][name], tensor) for name, tensor in one.state["model"].items())


def test_self_distillation_logs_what_its_penalty_weighs(tmp_path: Path) -> None:
    trained(tmp_path / "run", "self-distill", log_every=5, distill_weight=0.5, epochs=1)
    (row,) = rows(tmp_path / "run", "step")
    assert 0 < row["penalty"] < row["loss"]
    assert row["penalty_gradient_ratio"] > 0


def test_what_the_oracle_did_is_seen_although_the_last_draw_was_not_mined(tmp_path: Path) -> None:
    trained(tmp_path / "run", "self-distill", mine_every=2, log_every=2, distill_weight=0.5, update_every=4)
    assert [row["version"] for row in rows(tmp_path / "run", "step")] == [0, 0, 4, 4, 8]
    assert all(row["penalty_gradient_ratio"] > 0 for row in rows(tmp_path / "run", "step"))
    trained(tmp_path / "views", "nm-augment", mine_every=2)
    assert {row.epoch for row in load_gallery(tmp_path / "views")} == {0, 1}


@pytest.mark.parametrize("method", ["batch-augment", "nm-sample", "random-sample", "nm-augment-soft"])
def test_every_method_trains(method: str, tmp_path: Path) -> None:
    result = trained(tmp_path / "run", method, log_every=5)
    assert result.evaluation.loss < 2.5
    shares = [row["mined_share"] for row in rows(tmp_path / "run", "step")]
    expected = {"batch-augment": [0, 0], "nm-sample": [0, 0.5], "random-sample": [0, 0], "nm-augment-soft": [1, 1]}
    assert shares == expected[method]


def test_training_learns(tmp_path: Path) -> None:
    result = train(config(epochs=6, lr_drops=(5,)), tmp_path / "run", quiet=True, report=False)
    assert result.evaluation.error < 0.7


def test_a_disk_that_takes_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said is that there is no checkpoint, not that this could not be written down; nothing is left running."""
    logs, closed = [], []

    class Log(RunLog):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            logs.append(self)

    def refuse(*arguments: Any, **named: Any) -> None:
        logs[0]._file = Path("/dev/full").open("a")  # noqa: SIM115 -- the log closes it
        raise CheckpointError("a checkpoint must be written whole")

    monkeypatch.setattr(loop, "RunLog", Log)
    monkeypatch.setattr(loop, "save_checkpoint", refuse)
    close = MinedLoader.close
    monkeypatch.setattr(MinedLoader, "close", lambda loader: (closed.append(loader), close(loader)))
    with pytest.raises(CheckpointError, match="must be written whole"):
        trained(tmp_path / "run", "baseline")
    assert len(closed) == 1


def test_in_a_thread_without_signals(tmp_path: Path) -> None:
    """Signal handlers can only be set in the main thread; a training elsewhere goes without."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(trained(tmp_path / "run", "baseline", epochs=1)))
    thread.start()
    thread.join()
    assert is_finished(results[0].folder)


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(ValueError, match="which holds other files; pass another --name"):
            train(config(), tmp_path, resume=resume, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damaged", ["gallery.safetensors", "gallery.json", "picks/part-00000.parquet"])
@pytest.mark.filterwarnings("ignore:what was picked must be in whole:RuntimeWarning")
def test_a_damaged_record_does_not_keep_a_run_from_going_on(damaged: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000010")
    (folder / damaged).write_bytes(b"")
    train(config(log_every=1, lr_drops=(1,), checkpoint_every=3), folder, resume=True, quiet=True, report=False)
    assert is_finished(folder)
    assert {row.epoch for row in load_gallery(folder)} == ({1} if "gallery" in damaged else {0, 1})
    assert read_picks(folder)["draw"].max() == 9


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, refused, end_epoch = tmp_path / "run", [], loop.Watch.epoch

    def epoch(*arguments: Any, **named: Any) -> None:
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises(
            ValueError, match=r"one process at a time trains in a folder: got .* another --name"
        ) as error:
            train(config("baseline", epochs=1), folder, resume=True, quiet=True)
        assert (folder / "metrics.jsonl").read_bytes() == before
        refused.append(error)
        end_epoch(*arguments, **named)

    monkeypatch.setattr(loop.Watch, "epoch", epoch)
    trained(folder, "baseline", epochs=1)
    assert len(refused) == 1


def test_of_two_that_begin_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, make = tmp_path / "run", loop.prepare

    def slowly(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(loop, "prepare", make)
        trained(folder, "baseline", epochs=1)
        return make(*arguments, **named)

    monkeypatch.setattr(loop, "prepare", slowly)
    with pytest.raises(ValueError, match="which exists; pass --resume"):
        trained(folder, "baseline", epochs=1, seed=1)
    assert read_config(folder)["seed"] == 0
    assert is_finished(folder)


def test_resume_of_what_was_never_started_is_a_start(tmp_path: Path) -> None:
    train(config("baseline", epochs=1), tmp_path / "new", resume=True, quiet=True, report=False)
    assert is_finished(tmp_path / "new")
    assert [row["event"] for row in rows(tmp_path / "new", "event")] == ["finished"]


def test_a_configuration_of_an_older_release(tmp_path: Path) -> None:
    trained(tmp_path / "run", "baseline", epochs=1)
    path = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "gone": 1}))
    with pytest.raises(ValueError, match="unknown setting 'gone'"):
        train(config("baseline", epochs=1), tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(ValueError, match="unknown setting 'gone'"):
        evaluate_folder(tmp_path / "run")


def test_a_state_of_an_older_release_names_the_folder(run: Path, tmp_path: Path) -> None:
    """It may be one that the user never named, of an irreducible model in the cache."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    del checkpoint.state["loader"]["pace"]
    save_checkpoint(folder / "checkpoints", checkpoint.step, checkpoint.state)
    with pytest.raises(
        ValueError, match=rf"the run in {folder} cannot be resumed: .* without pace; .* remove that folder"
    ):
        train(config(log_every=1, lr_drops=(1,), checkpoint_every=3), folder, resume=True, quiet=True)
