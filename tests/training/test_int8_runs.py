"""Runs with int8 oracles through the command line: what is decided, written, resumed and shown."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infer2train.observe.runlog import read_config, read_rows
from infer2train.oracle.engines import INT8, missing_packages

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
from infer2train.cli import main as cli

INSTALLED = [spec for spec in INT8 if not missing_packages(spec)]
SHORT = (
    *("--epochs", "2", "--threads", "1", "--train-error-samples", "0", "--gamma", "4"),
    *("--update-every", "3", "--log-every", "1", "--quiet"),
)
MINED = ["--method", "nm-augment"]

needs_onnxruntime = pytest.mark.skipif(bool(missing_packages("onnxruntime")), reason="onnxruntime is not installed")


def train(*more: str) -> int:
    return cli.main(["train", *SHORT, *MINED, *more])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def last_tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(max(Path("runs", name, "checkpoints").glob("step-*")) / "tensors.safetensors")


@pytest.mark.skipif(not INSTALLED, reason="no int8 engine is installed")
def test_int8_is_the_fastest_engine_installed_and_stays_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--oracle", "int8", "--name", "a") == 0
    assert read_config(Path("runs/a"))["oracle"] == INSTALLED[0]
    assert train("--oracle", "int8", "--name", "a", "--resume") == 0
    assert "captured gain" in Path("runs/a/report.html").read_text().lower()
    capsys.readouterr()


@needs_onnxruntime
def test_a_run_that_goes_on_ends_in_the_same_weights(capsys: pytest.CaptureFixture[str]) -> None:
    engine = ["--oracle", "onnxruntime:int8"]
    assert train(*engine, "--name", "whole") == 0
    assert train(*engine, "--name", "broken") == 0
    folder = Path("runs/broken/checkpoints")
    last, before = sorted(folder.glob("step-*"), reverse=True)[:2]
    assert before.name == "step-00000005", "the last checkpoint before it is between two publications"
    for path in sorted(last.iterdir()):
        path.unlink()
    last.rmdir()
    assert train(*engine, "--name", "broken", "--resume") == 0
    whole, again = last_tensors("whole"), last_tensors("broken")
    assert any("ranges" in name for name in whole), "ranges are part of the published records"
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    capsys.readouterr()


@needs_onnxruntime
def test_refreshes_leave_their_fidelity_in_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--oracle", "onnxruntime:int8", "--name", "a") == 0
    steps = [row for row in read_rows(Path("runs/a")) if row["kind"] == "step"]
    (measured,) = [row for row in steps if "captured_gain" in row]
    assert measured["step"] == 1, "the model is asked at most every 100 steps"
    assert 0 <= measured["same_view"] <= 1
    assert -1 <= measured["rank_correlation"] <= 1
    refreshed = [row for row in steps if "deviation" in row]
    assert [row["step"] for row in refreshed] == [1, 4, 7, 10], "the steps after a publication"
    assert all(row["fp32_versions"] == row["recalibrations"] == 0 for row in refreshed)
    assert all(row["deviation"] <= 2 for row in refreshed)
    assert all(row["int8_share"] > 0.9 for row in refreshed)
    capsys.readouterr()


def test_auto_is_measured_once_and_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer2train.oracle.measurement.CANDIDATES", ("torch:fp32", "simulated:b8"))
    monkeypatch.setattr("infer2train.oracle.measurement.MEASURED_SECONDS", 0.01)
    assert train("--oracle", "auto", "--name", "a") == 0
    chosen = read_config(Path("runs/a"))["oracle"]
    assert chosen in ("torch:fp32", "simulated:b8")
    decided = [row["message"] for row in read_rows(Path("runs/a")) if row.get("event") == "decided"]
    assert decided[0] == f"oracle auto is {chosen} here"
    assert len(decided) == 3
    monkeypatch.setattr("infer2train.oracle.measurement.fastest_engine", None)  # asked again, it would fail
    assert train("--oracle", "auto", "--name", "a", "--resume") == 0
    capsys.readouterr()


def test_a_control_needs_no_engine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer2train.oracle.engines.missing_packages", lambda name: ["openvino"])
    assert cli.main(["train", *SHORT, "--method", "baseline", "--oracle", "int8", "--name", "a"]) == 0
    assert train("--oracle", "int8", "--name", "b") == 2
    assert "pip install 'infer2train[openvino]'" in capsys.readouterr().err
    assert not Path("runs/b").exists()


def test_arms_of_a_comparison_have_oracles_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    arms = ["baseline", "nm-augment", "nm-augment@simulated:b4"]
    assert cli.main(["compare", *SHORT, "--seeds", "1", "--methods", *arms, "--name", "c"]) == 0
    assert json.loads(Path("runs/c/comparison.json").read_text())["methods"] == [
        *("baseline", "nm-augment", "nm-augment@simulated-b4")
    ]
    found = {name: read_config(Path("runs/c", f"{name}-seed0"))["oracle"] for name in ("nm-augment@simulated-b4",)}
    assert found == {"nm-augment@simulated-b4": "simulated:b4"}
    assert cli.main(["compare", *SHORT, "--seeds", "1", "--methods", "baseline", "nm-augment@auto"]) == 2
    assert "one oracle: got auto" in capsys.readouterr().err
    assert cli.main(["compare", *SHORT, "--seeds", "1", "--methods", "baseline", "nm-augment@openvinoo:int8"]) == 2
    assert "did you mean 'openvino'" in capsys.readouterr().err
