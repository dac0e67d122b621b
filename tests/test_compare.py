"""Methods x seeds: every run is trained once, in pairs, and the table says what can be said."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infer2train.machine.cores import available_cores
from infer2train.observe.runlog import read_config, read_rows
from infer2train.studies.compare import Comparison, compare, write_comparison
from infer2train.training.config import RunConfig
from infer2train.training.folder import is_finished
from infer2train.training.loop import DivergedError
from run_processes import Moment, command_line, interrupt

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
from infer2train.cli.arguments import parse
from infer2train.cli.arms import own_settings
from infer2train.cli.main import main

TINY = "--epochs 2 --batch-size 50 --gamma 2 --threads 1 --train-error-samples 0 --limit 100 --checkpoint-every 3"
COMPARE = ["compare", "--methods", "baseline", "nm-augment", "--seeds", "2", *TINY.split(), "--name", "pair"]
NAMES = ["baseline-seed0", "nm-augment-seed0", "baseline-seed1", "nm-augment-seed1"]
LOOP, WATCH = "infer2train.training.loop", "infer2train.training.watch"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished comparison, and what it printed. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("finished")
    status, output = command_line(folder, *COMPARE)
    assert status == 0, output
    return folder / "runs" / "pair", output


def weights(run: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(max((run / "checkpoints").glob("step-*")) / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("state['model']")}


def last_error(run: Path) -> float:
    return float([row for row in read_rows(run) if row["kind"] == "epoch"][-1]["test_error"])


def starts(folder: Path) -> dict[str, int]:
    """How often each run was started."""
    return {name: sum(row["kind"] == "start" for row in read_rows(folder / name)) for name in NAMES}


def test_table_verdicts_and_report(finished: tuple[Path, str]) -> None:
    folder, output = finished
    assert {path.name for path in folder.iterdir()} == {*NAMES, "comparison.json", "report.html"}
    lines = {words[0]: line for line in output.splitlines() if (words := line.split())}
    errors = {name: last_error(folder / name) for name in NAMES}
    for method in ("baseline", "nm-augment"):
        mean = (errors[f"{method}-seed0"] + errors[f"{method}-seed1"]) / 2
        assert f"{100 * mean:.2f} ±" in lines[method]
    differences = [100 * (errors[f"nm-augment-seed{seed}"] - errors[f"baseline-seed{seed}"]) for seed in (0, 1)]
    assert f"{sum(differences) / 2:+.2f} [" in lines["nm-augment"], "the mean of the paired differences"
    assert "INCONCLUSIVE" in lines["nm-augment"], "two seeds of an untrained model prove nothing"
    assert "[" not in lines["baseline"]
    assert output.splitlines()[-1] == "report: runs/pair/report.html"
    page = (folder / "report.html").read_text()
    assert "nm-augment" in page
    assert not (folder / "baseline-seed0" / "report.html").exists()


def test_pairs_share_seed_first_weights_and_settings(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for seed in (0, 1):
        one, other = (read_config(folder / f"{method}-seed{seed}") for method in ("baseline", "nm-augment"))
        assert one["seed"] == other["seed"] == seed
        assert {name for name in one if one[name] != other[name]} == {"method"}
    order = [read_rows(folder / name)[0]["time"] for name in NAMES]
    assert order == sorted(order), "whole pairs first"
    assert json.loads((folder / "comparison.json").read_text())["seeds"] == [0, 1]


def test_an_interrupted_comparison_goes_on_and_repeats_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "pair"
    status, output = command_line(tmp_path, *COMPARE, moment=Moment("before", f"{LOOP}:train_step", 6, interrupt))
    assert status == 130
    assert "interrupted after step 2; everything is saved; the same command with --resume goes on" in output
    assert starts(folder) == dict(zip(NAMES, [1, 1, 0, 0], strict=True))
    status, output = command_line(tmp_path, *COMPARE)
    assert status == 2
    assert "--resume" in output
    killed = Moment("after", f"{LOOP}:train_step", 2 + 4 + 1)
    status, output = command_line(tmp_path, *COMPARE, "--resume", moment=killed)
    assert status == -9
    status, output = command_line(tmp_path, *COMPARE, "--resume")
    assert status == 0, output
    assert starts(folder) == dict(zip(NAMES, [1, 2, 1, 2], strict=True))
    for name in NAMES:
        expected = weights(finished[0] / name)
        assert expected
        assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(folder / name).items()), name
    without_times = [re.sub(r"[\d.]+ m?s.*", "", line) for line in finished[1].splitlines()]
    assert [re.sub(r"[\d.]+ m?s.*", "", line) for line in output.splitlines()][-6:] == without_times[-6:]


@pytest.mark.parametrize(
    ("moment", "said", "begun"),
    [
        (Moment("before", f"{LOOP}:prepare", 1, interrupt), "interrupted", [0, 0, 0, 0]),
        (Moment("before", f"{WATCH}:evaluate", 1, interrupt), "interrupted after step 2; everything is", [1, 0, 0, 0]),
        (Moment("before", f"{WATCH}:evaluate", 2, interrupt), "when baseline-seed0 was finished;", [1, 0, 0, 0]),
    ],
)
def test_ctrl_c_is_heard_outside_the_steps_too(moment: Moment, said: str, begun: list[int], tmp_path: Path) -> None:
    status, output = command_line(tmp_path, *COMPARE, moment=moment)
    assert status == 130, output
    assert said in output
    assert starts(tmp_path / "runs" / "pair") == dict(zip(NAMES, begun, strict=True))


def test_finished_runs_stay_and_more_seeds_are_added(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "pair"
    shutil.copytree(finished[0], folder)
    before = {name: (folder / name / "metrics.jsonl").read_bytes() for name in NAMES}
    assert main([*COMPARE, "--seeds", "3", "--resume", "--quiet"]) == 0
    assert {name: (folder / name / "metrics.jsonl").read_bytes() for name in NAMES} == before
    assert (folder / "baseline-seed2" / "metrics.jsonl").exists()
    row = next(line for line in capsys.readouterr().out.splitlines() if "nm-augment" in line)
    assert row.split()[1] == "3"


def test_other_settings_are_refused_before_anything_is_written(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "pair"
    shutil.copytree(finished[0], folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([*COMPARE, "--resume", "--lr", "0.2", "--seeds", "3"]) == 2
    assert "lr: 0.05 -> 0.2" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_comparison_that_was_refused_can_be_asked_for_again(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--seeds", "1", *TINY.split(), "--epochs", "1", "--name", "one", "--quiet"]
    assert main([*arguments, "--data", "nothing"]) == 2
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err


def test_common_settings_reach_only_the_methods_that_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["baseline", "nm-augment", "nm-sample", "random-sample", "self-distill"]
    more = ["--score", "entropy", "--pick", "quantile", "--ramp-start", "0.0", "--ramp-stop", "0.5", "--name", "mixed"]
    arguments = ["compare", "--methods", *methods, "--seeds", "1", *TINY.split(), "--epochs", "1", *more, "--quiet"]
    assert main(arguments) == 0, capsys.readouterr().err
    configs = {method: read_config(Path(f"runs/mixed/{method}-seed0")) for method in methods}
    chosen = {method: (c["score"], c["pick"], c["ramp_stop"]) for method, c in configs.items()}
    assert chosen == {
        "baseline": (None, None, None),
        "nm-augment": ("entropy", "quantile", 0.5),
        "nm-sample": ("entropy", None, 0.5),
        "random-sample": (None, None, 0.5),
        "self-distill": (None, None, None),
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_diverges_keeps_no_other_from_being_trained_and_shown(jobs: int, tmp_path: Path) -> None:
    sound = RunConfig(epochs=1, batch_size=40, limit=80, threads=1, train_error_samples=0)
    runs = {
        ("baseline", 0): sound,
        ("nm-augment", 0): replace(sound, method="nm-augment", gamma=2, lr=1e30),
        ("baseline", 1): replace(sound, seed=1),
    }
    with pytest.raises(DivergedError, match=r"nm-augment-seed0: .* must stay finite.*\(1 of 3 runs; the report shows"):
        compare(Comparison(runs=runs), tmp_path / "pair", jobs=jobs, quiet=True)
    assert [is_finished(tmp_path / "pair" / f"{arm}-seed{seed}") for arm, seed in runs] == [True, False, True]
    assert "nm-augment" in (tmp_path / "pair" / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_oracles_of_runs_side_by_side_have_other_cores(tmp_path: Path) -> None:
    mined = RunConfig(method="nm-augment", gamma=2, pool="process", limit=80, batch_size=40, epochs=1, threads=1)
    runs = {("nm-augment", seed): replace(mined, seed=seed) for seed in (0, 1)}
    compare(Comparison(runs=runs, baseline="nm-augment"), tmp_path / "pair", jobs=2, quiet=True)
    own = [read_config(tmp_path / "pair" / f"nm-augment-seed{seed}")["oracle_cores"] for seed in (0, 1)]
    assert own[0] != own[1]


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_one_after_another(finished: tuple[Path, str]) -> None:
    assert main([*COMPARE, "--jobs", "2", "--quiet"]) == 0
    for name in NAMES:
        expected = weights(finished[0] / name)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(Path("runs/pair") / name).items())


@pytest.mark.parametrize("foreign", ["config.yaml", "metrics.jsonl", "thesis.tex"])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_folder_of_something_else_is_left_alone(
    foreign: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "pair"
    folder.mkdir(parents=True)
    (folder / foreign).write_text("")
    assert main([*COMPARE, *more, "--quiet"]) == 2
    assert f"a comparison needs a folder of its own: got runs/pair, which holds {foreign}" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [foreign]


def test_a_comparison_is_written_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "pair"
    write_comparison(folder, ["baseline"], [0], "baseline")
    (folder / ".comparison.json.partial").mkdir()  # nothing can be written there
    with pytest.raises(OSError, match=r"\.partial"):
        write_comparison(folder, ["baseline"], [0, 1], "baseline")
    assert json.loads((folder / "comparison.json").read_text())["seeds"] == [0]
    (folder / ".comparison.json.partial").rmdir()
    (folder / ".comparison.json.partial").touch()
    assert main([*COMPARE, "--data", "nothing"]) == 2
    assert "--resume" not in capsys.readouterr().err, "what a kill has left is no comparison that was begun"


def test_one_method_is_not_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--method", "nm-sample"]) == 2
    assert "pass --methods baseline" in capsys.readouterr().err


def test_an_oracle_of_an_arms_own_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--methods", "baseline", "nm-augment@"]) == 2
    assert "names an oracle: got 'nm-augment@'; write nm-augment@int8" in capsys.readouterr().err


def test_a_setting_asked_for_wins_over_the_regimes_own_for_a_method() -> None:
    asked = ["compare", "--regime", "cifar10-resnet44", "--methods", "baseline", "nm-sample"]
    _, options = parse([*asked, "--balance", "stratified"])
    assert "balance" not in own_settings(options, "nm-sample")
    _, options = parse(asked)
    assert own_settings(options, "nm-sample")["balance"] == "uniform"
    _, options = parse([*asked, "--epochs", "30"])
    own = own_settings(options, "nm-sample")
    assert (own["ramp_rate"], own.keys() & {"lr_drops"}) == (pytest.approx(0.03), set()), "of a ramp in 30 epochs"
