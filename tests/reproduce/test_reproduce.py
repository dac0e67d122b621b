"""An experiment from its arms to its page: chosen on held-out images, trained once, told honestly."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.observe.runlog import read_config, read_rows
from infer2train.reporting.runs import RunFolder, read
from infer2train.reporting.svg import SERIES
from infer2train.reporting.tables import difference
from infer2train.studies.reproduce.costs import cost
from infer2train.studies.reproduce.diagnosis import recalibrate
from infer2train.studies.reproduce.experiments import Arm, Experiment
from infer2train.studies.reproduce.page import Line, reached, table
from infer2train.studies.reproduce.run import reproduce
from infer2train.studies.reproduce.sitting import Sitting
from infer2train.training.config import as_long_as, from_plain
from infer2train.training.evaluation import random_views
from infer2train.training.loop import DivergedError
from infer2train.training.setup import prepare

TINY = {"epochs": 2, "batch_size": 50, "gamma": 2, "threads": 1, "train_error_samples": 50, "lr_drops": (1,)}
EXPERIMENT = Experiment(
    name="exp",
    title="Does it work?",
    regime="digits",
    arms=(
        Arm(name="baseline", against=None, paper="93.07 %"),
        Arm(name="nm-augment", settings={"method": "nm-augment"}, against="baseline"),
        Arm(name="self-distill", against="baseline", winner_of="lambda"),
        Arm(name="long", against="baseline", wall_clock_of="nm-augment", also_against=("nm-augment", "never trained")),
    ),
    sweeps={
        "lambda": tuple(
            Arm(name=f"self-distill-{w:g}", settings={"method": "self-distill", "distill_weight": w, "lr": lr})
            for w, lr in ((0.5, 1e-9), (0.25, 0.05))
        )
    },
    source="made up",
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def sitting(folder: Path, archive: Path | None = None, seeds: int = 2) -> Sitting:
    of_all = {"common": TINY, "held_out": 50, "sweep_seeds": 2, "quiet": True}
    return Sitting(experiment=EXPERIMENT, folder=folder, archive=archive, seeds=seeds, **of_all)


Trained = tuple[Path, Path, list[Line]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished experiment and its archive. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("experiment")
    found = reproduce(sitting(folder / "runs", folder / "archive"))
    return folder / "runs", folder / "archive", found


def last(folder: Path) -> dict[str, float]:
    return [row for row in read_rows(folder) if row["kind"] == "epoch"][-1]


def test_every_arm_is_trained_over_every_seed_and_its_last_epoch_is_reported(trained: Trained) -> None:
    runs, _, found = trained
    assert [line.arm.name for line in found] == ["baseline", "nm-augment", "self-distill", "long"]
    for line in found:
        assert line.errors == {s: last(runs / "runs" / f"{line.arm.name}-seed{s}")["test_error"] for s in (0, 1)}
    differences = [line.difference for line in found]
    assert differences[0] is None
    assert differences[1] is not None
    assert differences[1].mean == pytest.approx(sum(found[1].errors[s] - found[0].errors[s] for s in (0, 1)) / 2)


def test_a_sweep_is_decided_on_held_out_images_and_the_winner_is_tested(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, _, _ = trained
    decided = json.loads((runs / "exp" / "sweep-lambda" / "decided.json").read_text())
    errors = {name: sum(found) / len(found) for name, found in decided["held_out_errors"].items()}
    assert errors["held-out-self-distill-0.25"] < errors["held-out-self-distill-0.5"], "which hardly learns at all"
    assert decided["winner"] == "self-distill-0.25"
    tested = read_config(runs / "runs" / "self-distill-seed0")
    assert (tested["distill_weight"], tested["validation_split"]) == (0.25, 0)
    held_out = read_config(runs / "runs" / "held-out-self-distill-0.25-seed0")
    assert held_out["validation_split"] > 0


def test_a_candidate_that_diverges_is_left_out_of_its_sweep(tmp_path: Path) -> None:
    candidates = tuple(Arm(name=f"lr-{lr:g}", settings={"lr": lr}) for lr in (1e30, 0.05))
    arms = (Arm(name="baseline", against=None), Arm(name="tuned", against="baseline", winner_of="rate"))
    experiment = replace(EXPERIMENT, arms=arms, sweeps={"rate": candidates})
    few = {**TINY, "limit": 100, "epochs": 1}
    asked = replace(sitting(tmp_path, seeds=1), experiment=experiment, common=few)
    assert [line.arm.name for line in reproduce(asked)] == ["baseline", "tuned"]
    page = (tmp_path / "exp" / "page.md").read_text(encoding="utf-8")
    assert "Chosen: **lr-0.05**. Left out, as they diverged: lr-1e+30.\n\n## How" in page
    none = replace(asked, experiment=replace(experiment, name="none", sweeps={"rate": candidates[:1]}))
    with pytest.raises(DivergedError, match=r"whose runs all finish: got none of rate in .*lr-1e.30-seed0: .*--arms"):
        reproduce(none)


@pytest.mark.parametrize("damaged", ["", "[]", '{"winner": "self-distill-0.25"}'])
def test_a_damaged_decision_is_named_with_its_remedy(tmp_path: Path, damaged: str) -> None:
    file = tmp_path / "exp" / "sweep-lambda" / "decided.json"
    file.parent.mkdir(parents=True)
    file.write_text(damaged)
    with pytest.raises(ValueError, match=rf"{file} must hold a sweep's winner .*; remove it"):
        reproduce(sitting(tmp_path))


def test_the_baseline_gets_the_wall_clock_and_the_devices_of_another_arm(trained: Trained) -> None:
    runs, _, found = trained
    config = read_config(runs / "runs" / "long-seed0")
    theirs, ours = (_epoch_seconds(runs / "exp" / "timing-long" / name) for name in ("hybrid", "baseline"))
    assert read_config(runs / "exp" / "timing-long" / "hybrid")["method"] == "nm-augment"
    assert config["method"] == "baseline"
    assert config["threads"] == 1
    assert config["epochs"] == max(1, round(2 * theirs / ours))
    assert config["lr_drops"] == [round(config["epochs"] / 2)], "the learning rate falls within its own length"
    assert {line.arm.name: line.num_devices for line in found}["long"] == 1


def _epoch_seconds(folder: Path) -> float:
    """Of its last epoch, without what is not training."""
    row = [row["seconds"] for row in read_rows(folder) if row["kind"] == "epoch"][-1]
    return float(row["total"] - row.get("evaluation", 0) - row.get("checkpoint", 0))


def test_what_an_arm_costs_is_timed_beside_the_others_and_not_taken_from_its_runs(trained: Trained) -> None:
    runs, _, found = trained
    timed = {line.arm.name: _epoch_seconds(runs / "exp" / "timing" / line.arm.name) for line in found}
    epochs = {line.arm.name: read_config(runs / "runs" / f"{line.arm.name}-seed0")["epochs"] for line in found}
    for line in found:
        name = line.arm.name
        assert line.wall == pytest.approx(epochs[name] * timed[name] / (epochs["baseline"] * timed["baseline"]))
        assert line.device_seconds == line.wall, "each has one core here"
    page = (runs / "exp" / "page.md").read_text(encoding="utf-8")
    assert "timed one after another" in page


def test_an_arm_with_an_oracle_is_also_compared_with_what_its_device_could_have_done(trained: Trained) -> None:
    runs, _, found = trained
    lines = {line.arm.name: line for line in found}
    with_oracle = [name for name, line in lines.items() if line.on_equal_hardware is not None]
    assert with_oracle == ["nm-augment", "self-distill"]
    mined = lines["nm-augment"]
    assert mined.on_equal_hardware is not None
    gap = sum(mined.errors[s] - lines["long"].errors[s] for s in (0, 1)) / 2
    assert mined.on_equal_hardware.mean == pytest.approx(gap)
    page = (runs / "exp" / "page.md").read_text(encoding="utf-8")
    assert "nm-augment against long, on equal hardware: " in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    column = rows[0].split("|").index(" on equal hardware, points [95 %] ")
    shown = {row.split("|")[1].strip(): row.split("|")[column].strip() for row in rows[2:6]}
    assert shown == {name: difference(line.on_equal_hardware) for name, line in lines.items()}


def test_an_arm_is_compared_with_others_where_its_file_says_so(trained: Trained) -> None:
    runs, _, found = trained
    mined, long = ({line.arm.name: line for line in found}[name] for name in ("nm-augment", "long"))
    assert long.others.keys() == {"nm-augment"}
    assert mined.on_equal_hardware is not None
    assert long.others["nm-augment"].mean == pytest.approx(-mined.on_equal_hardware.mean)
    (said,) = (line for line in (runs / "exp" / "page.md").read_text().splitlines() if "- long against nm-" in line)
    assert said.startswith(f"- long against nm-augment: {difference(long.others['nm-augment'])} points, ")


def test_steps_to_a_goal_are_counted_until_it_is_first_reached() -> None:
    def curve(seed: int, *errors: float | None, steps: int = 10) -> RunFolder:
        epochs = tuple({"test_error": error, "step": steps * n} for n, error in enumerate(errors, 1))
        nothing: dict[str, Any] = {"config": {}, "starts": (), "steps": (), "events": (), "unreadable": 0}
        return RunFolder(folder=Path(), method="any", seed=seed, epochs=epochs, **nothing)

    goals = [curve(0, 0.9, 0.8, 0.2, 0.3), curve(1, 0.6, None, None, 0.5)]
    first, second = curve(0, 0.9, 0.3, 0.4, 0.2), curve(1, None, 0.6, None, 0.5)
    assert reached([first], goals) == 0.5, "the second of four epochs, whatever comes after"
    assert reached([first, second, curve(7, 0.9)], goals) == 0.75, "seeds without a goal do not count"
    assert reached([curve(0, 0.6, 0.3, steps=5)], goals) == 0.25, "half as long a run counts by its steps"
    assert reached([first, curve(1, 0.6, 0.51)], goals) is None, "one never gets there"
    assert reached([], goals) is None


def test_a_column_in_which_nothing_stands_is_not_shown(trained: Trained) -> None:
    assert "on equal hardware" in table(trained[2])
    assert "on equal hardware" not in table(trained[2][:1])


def test_the_page_says_what_it_found_and_what_it_cannot_say(trained: Trained) -> None:
    runs, _, found = trained
    page = (runs / "exp" / "page.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("|")}
    assert "93.07 %" in rows["baseline"]
    for line in found:
        mean = sum(line.errors.values()) / 2
        assert f"{100 * mean:.2f} ±" in rows[line.arm.name]
        if line.difference is not None and line.difference.verdict == "INCONCLUSIVE":
            assert f"{line.arm.name} against baseline" in page
            assert "seeds cannot resolve" in page
    assert "Not finished" not in page
    assert "Chosen: **self-distill-0.25**" in page
    figure = (runs / "exp" / "errors-a.svg").read_text()
    assert figure.startswith("<svg")
    assert f"stroke: {SERIES[0]}" in figure, "the baseline in red"
    assert "var(" not in figure, "a viewer that knows no CSS shows it too"
    plain = json.loads((runs / "exp" / "results.json").read_text())
    assert [line["arm"] for line in plain] == [line.arm.name for line in found]


def test_every_run_is_evaluated_again_with_batch_norm_statistics_of_random_views(trained: Trained) -> None:
    runs, _, found = trained
    for line in found:
        rows = [
            row for row in read_rows(runs / "runs" / f"{line.arm.name}-seed0") if row.get("event") == "recalibrated"
        ]
        assert len(rows) == 1
        assert line.recalibrated is not None
        assert 0 <= rows[0]["test_error"] <= 1


def test_statistics_are_measured_anew_and_weights_stay(trained: Trained) -> None:
    runs, _, _ = trained
    folder = runs / "runs" / "nm-augment-seed0"
    run = prepare(from_plain(read_config(folder)), progress=False)
    checkpoint = load_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    run.model.load_state_dict(checkpoint.state["model"])
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    views = random_views(len(run.training_images), 100, seed=0, epoch=5)
    seen: list[torch.Tensor] = []
    norm = next(module for module in run.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    recalibrate(run, views)
    hook.remove()
    run.loader.close()
    torch.testing.assert_close(norm.running_mean, torch.cat(seen).mean((0, 2, 3)))
    for name, tensor in run.model.state_dict().items():
        is_statistic = "running" in name or "num_batches" in name
        assert is_statistic or torch.equal(tensor, before[name])
    assert not torch.equal(norm.running_mean, before[next(n for n in before if n.endswith("running_mean"))])


def test_a_run_that_no_archive_has_is_kept_in_a_later_sitting_and_looked_at(trained: Trained, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained[0] / "runs" / "baseline-seed0", runs / "baseline-seed0")
    metrics = runs / "baseline-seed0" / "metrics.jsonl"
    rows = [line for line in metrics.read_text().splitlines() if "recalibrated" not in line]
    metrics.write_text("\n".join(rows) + "\n")  # as a kill between the end of the training and the diagnosis leaves it
    found = reproduce(sitting(tmp_path, tmp_path / "archive", seeds=1), ["baseline"])
    assert starts(runs) == 1
    assert found[0].recalibrated is not None
    kept = read_rows(tmp_path / "archive" / "baseline-seed0")
    assert [row["event"] for row in kept if row["kind"] == "event"] == ["finished", "recalibrated"]


def starts(runs: Path) -> int:
    return sum(row["kind"] == "start" for folder in runs.iterdir() for row in read_rows(folder))


def test_what_is_finished_is_not_trained_again_here_or_where_the_archive_is(trained: Trained, tmp_path: Path) -> None:
    runs, archive, found = trained
    before = starts(runs / "runs")
    again = reproduce(sitting(runs))
    assert starts(runs / "runs") == before
    assert [line.as_plain() for line in again] == [line.as_plain() for line in found]
    elsewhere = reproduce(sitting(tmp_path, archive), ["baseline"])
    assert elsewhere[0].errors == found[0].errors
    assert not (tmp_path / "runs" / "baseline-seed0" / "checkpoints").exists(), "trained here after all"
    kept = sum(path.stat().st_size for path in (archive / "nm-augment-seed0").iterdir())
    assert kept < 20_000


def test_another_seed_is_added_to_what_is_there_and_what_is_missing_is_said(trained: Trained, tmp_path: Path) -> None:
    found = reproduce(sitting(tmp_path, trained[1], seeds=3), ["baseline"])
    assert sorted(found[0].errors) == [0, 1, 2]
    page = (tmp_path / "exp" / "page.md").read_text(encoding="utf-8")
    assert "**Not finished**: nm-augment (0 of 3)" in page


def test_an_arm_of_measured_length_stays_as_long_as_it_was_where_it_was_measured(
    trained: Trained, tmp_path: Path
) -> None:
    found = reproduce(sitting(tmp_path, trained[1], seeds=1), ["long"])
    assert [line.arm.name for line in found] == ["long"]
    assert found[0].errors == {0: trained[2][3].errors[0]}
    assert found[0].wall is None, "nothing is timed while arms are missing"
    assert not (tmp_path / "exp" / "timing-long").exists()
    assert "once all runs are there" in (tmp_path / "exp" / "page.md").read_text(encoding="utf-8")


def test_a_sitting_of_one_arm_treats_the_others_as_what_they_are(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "exp" / "timing")
    found = reproduce(sitting(tmp_path), ["baseline"])
    assert read_config(tmp_path / "exp" / "timing" / "self-distill")["method"] == "self-distill"
    assert [line.on_equal_hardware for line in found] == [line.on_equal_hardware for line in trained[2]]
    assert "chosen on 50 training images" in (tmp_path / "exp" / "page.md").read_text(encoding="utf-8")


def test_an_arm_whose_sweep_was_decided_elsewhere_is_shown_and_not_timed(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    for made in ("timing", "sweep-lambda"):
        shutil.rmtree(tmp_path / "exp" / made)
    found = {line.arm.name: line for line in reproduce(sitting(tmp_path), ["baseline"])}
    assert found["self-distill"].on_equal_hardware is not None, "its runs say that it has an oracle"
    assert found["self-distill"].wall is None
    assert not (tmp_path / "exp" / "timing").exists()


def test_what_was_timed_under_other_settings_is_timed_again(tmp_path: Path) -> None:
    config = sitting(tmp_path).run(Arm(name="baseline"))
    cost(config, tmp_path / "timing", quiet=True)
    rows = read_rows(tmp_path / "timing")
    cost(config, tmp_path / "timing", quiet=True)
    assert read_rows(tmp_path / "timing") == rows, "the same settings are timed once"
    cost(replace(config, method="nm-augment"), tmp_path / "timing", quiet=True)
    assert read_config(tmp_path / "timing")["method"] == "nm-augment"


def test_the_report_shows_what_earlier_sittings_trained(trained: Trained, tmp_path: Path) -> None:
    for arm in ("nm-augment", "baseline"):
        reproduce(sitting(tmp_path, trained[1], seeds=1), [arm])
    assert [run.method for run in read(tmp_path / "exp").runs.values()] == ["baseline", "nm-augment"]
    assert "nm-augment" in (tmp_path / "exp" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("seeds", "expected"), [(1, {0}), (5, {0, 1})])
def test_a_choice_takes_the_first_seeds_only(seeds: int, expected: set[int]) -> None:
    runs = sitting(Path("runs"), seeds=seeds).sweep_runs(EXPERIMENT.sweeps["lambda"])
    assert {seed for _, seed in runs} == expected
    assert {config.validation_split for config in runs.values()} == {50}


def test_a_shorter_run_takes_the_whole_course_of_learning_rate_and_ramp() -> None:
    arm = Arm(name="nm-sample", settings={"method": "nm-sample", "ramp_rate": 0.01})
    whole = sitting(Path("runs")).run(arm)
    whole = as_long_as(replace(whole, epochs=60, lr_drops=(54,), warmup_epochs=6.0, ramp_rate=0.015), 10)
    assert (whole.epochs, whole.lr_drops, whole.warmup_epochs) == (10, (9,), 1.0)
    assert whole.ramp_rate == pytest.approx(0.09)


def test_devices_are_cores_of_trainer_and_oracle_also_of_a_larger_machine_than_this() -> None:
    from infer2train.studies.reproduce.costs import devices

    run = sitting(Path("runs")).run(EXPERIMENT.arms[1])
    assert devices(run) == 1
    assert devices(replace(run, threads=4, pool="process", oracle_cores="96-99")) == 8
    assert devices(replace(run, threads=4, pool="process", method="baseline")) == 4
    assert devices(replace(run, threads=4, device="cuda")) == 1


def test_an_arm_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arms must be the experiment's own: got 'nm-argument', there is baseline"):
        reproduce(sitting(tmp_path), ["nm-argument"])
    assert not list(tmp_path.iterdir())
