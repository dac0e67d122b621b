"""The whole measurement on a small model, and what scripts and people get of it."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conformance.engine import needs
from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.machine.cores import as_text, available_cores
from infer2train.models.build import build_model
from infer2train.oracle import measurement, rounds
from infer2train.oracle.engines import missing_packages
from infer2train.oracle.measurement import EngineSpeed, EngineTrial
from infer2train.oracle.rounds import take_turns
from infer2train.oracle.samples import GivenSamples
from infer2train.studies.gamma import measure
from infer2train.studies.gamma.busyness import Busyness
from infer2train.studies.gamma.measure import measure_gamma, subject_of
from infer2train.studies.gamma.recommendation import Recommendation
from infer2train.studies.gamma.report import GammaReport, print_gamma
from infer2train.studies.gamma.trainer import StepParts, TrainerSpeed, step_calls, step_parts
from infer2train.training.config import RunConfig
from infer2train.training.loop import train

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
from infer2train.cli import main as cli

ENGINE_FIELDS = {
    *("name", "images_per_second", "gamma", "end_to_end_gamma", "refresh_seconds", "captured_gain", "chunk"),
    *("rounds", "spread"),
}
OWN_ENGINES = ["torch:fp32", *(["onnxruntime:int8"] if not missing_packages("onnxruntime") else [])]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setattr(rounds, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(measurement, "CHUNKS", (8, 16))


def test_the_command_writes_every_field_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gamma.json"
    arguments = ["gamma", "--model", "resnet8", "--image-size", "16", "--batch-size", "8", "--threads", "1"]
    assert cli.main([*arguments, "--engines", *OWN_ENGINES, "--json", str(file), "--quiet"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert {"machine", "versions", "model", "batch_size", "threads", "train", "engines", "recommended"} <= found.keys()
    assert [found["model"], found["batch_size"], found["threads"]] == ["resnet8", 8, 1]
    assert all({"name", "images_per_second"} <= one.keys() for one in found["train"])
    assert len(found["train"]) == 4
    assert [one["name"] for one in found["engines"]] == OWN_ENGINES
    for one in found["engines"]:
        assert one.keys() >= ENGINE_FIELDS
        assert one["end_to_end_gamma"].keys() == {"10", "50", "100"}
        assert 0 < one["end_to_end_gamma"]["100"] < one["gamma"], "views and refreshes cost"
        assert max(one["rounds"]) == one["images_per_second"], "the fastest round counts"
        assert len(one["rounds"]) == found["rounds"] == 3
    rounding = [one["captured_gain"] for one in found["engines"] if one["name"] != "torch:fp32"]
    assert all(0.5 < gain <= 1 for gain in rounding)
    best = max(found["train"], key=lambda one: one["images_per_second"])
    assert max(best["rounds"]) == best["images_per_second"]
    assert found["recommended"].keys() == {"engine", "gamma", "update_every", "delay_steps", "verdict", "otherwise"}
    assert found["recommended"]["verdict"] in shown
    assert f"--oracle {found['recommended']['engine']}" in shown


def test_what_was_measured_is_not_lost_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "found", []

    def measured(**settings: Any) -> GammaReport:
        asked.append(settings)
        folder.rmdir()
        return report([speed("a", 3000.0)])

    monkeypatch.setattr(measure, "measure_gamma", measured)
    arguments = ["gamma", "--quiet", "--json"]
    for file in (folder / "gamma.json", tmp_path):
        assert cli.main([*arguments, str(file)]) == 2
        assert f"--json names a file in a folder that exists: got {file}; name another" in capsys.readouterr().err
    assert not asked, "refused before it is measured"
    folder.mkdir()
    assert cli.main([*arguments, str(folder / "gamma.json")]) == 1
    assert "γ = 10: FITS" in capsys.readouterr().out, "shown, although it cannot be written"


def test_the_parts_of_a_step_are_those_of_the_paper() -> None:
    model = build_model("resnet8", num_classes=10, in_channels=3, seed=0)
    calls = step_calls(model, torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))
    for call in calls.values():
        call()
    assert list(calls) == ["forward", "with inputs", "with all"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step_parts(1.0, 3.0, 3.5) == StepParts(forward=1.0, input_gradients=2.0, weight_gradients=0.5)
    assert step_parts(1.0, 3.0, 2.9).weight_gradients == 0, "nothing takes less than no time"


def speed(name: str, rate: float) -> EngineSpeed:
    return EngineSpeed(
        name=name, images_per_second=rate, chunk=8, refresh_seconds=0.1, captured_gain=None, rounds=(rate, rate / 2)
    )


def report(speeds: list[EngineSpeed], **settings: Any) -> GammaReport:
    """Of a made machine."""
    recommended = Recommendation(engine="a", gamma=10, update_every=10, delay_steps=1, verdict="FITS")
    made = {
        "machine": {"cpu": "a CPU"},
        "versions": {},
        **{"model": "m", "data": "random", "image_size": 32, "batch_size": 64, "threads": 1, "trained_steps": 5},
        "record_bytes": 4_000,
        **{"gamma": 10, "failed": {}, "views_per_second": 1e5},
        **{"rounds": 2, "is_cpu_time": False, "taken_by_others": 0.05},
        "train": [TrainerSpeed(name="eager", images_per_second=200.0, step_seconds=0.32, rounds=(200.0, 50.0))],
        "parts": step_parts(1.0, 2.0, 3.0),
        "engines": speeds,
        "recommended": recommended,
    }
    return GammaReport(**{**made, **settings})


def told(found: GammaReport) -> str:
    console = Console(width=160, file=io.StringIO())
    print_gamma(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_shows_the_spread_and_doubts_are_told_in_words() -> None:
    found = report([speed("a", 3000.0)])
    text = told(found)
    assert "2.0 ×" in text
    assert "spread 4.0 ×" in text
    assert "fastest of 2 rounds" in text
    assert "straddles" not in text
    doubted = replace(found.recommended, otherwise=("COSTS × 1.20",))
    text = told(report([speed("a", 3000.0)], recommended=doubted))
    assert "γ = 10: FITS" in text
    assert "on a machine as busy as this it may be COSTS × 1.20" in text


def test_what_others_take_is_told_and_that_several_threads_suffer_from_it() -> None:
    assert "other processes" not in told(report([speed("a", 3000.0)]))
    assert "took 50% of a core meanwhile, which CPU time leaves out" in told(
        report([speed("a", 3000.0)], is_cpu_time=True, taken_by_others=0.5)
    )
    text = told(report([speed("a", 3000.0)], threads=2, taken_by_others=0.5))
    assert "took 50% of a core meanwhile: 2 threads wait for each other then" in text
    assert "no more than a guess; measure one core with --threads 1" in text


@pytest.mark.parametrize(("wall_for_cpu", "share"), [(4.0, 0.75), (1.0, 0.0)])
def test_what_others_take_is_the_wall_less_the_cpu(wall_for_cpu: float, share: float) -> None:
    milliseconds = itertools.count()
    now = [0.0]

    def cpu() -> float:
        now[0] = next(milliseconds) / 1000
        return now[0]

    looked = Busyness(wall=lambda: wall_for_cpu * now[0], cpu=cpu)
    assert looked.share == 0, "nothing was seen yet"
    looked()
    assert looked.share == pytest.approx(share, abs=0.03)


def test_programs_of_several_chunks_take_turns_in_one_engine() -> None:
    """Each is compiled for its rows; a refresh between them leaves another one in use."""
    needs("openvino:int8")
    model = build_model("resnet8", num_classes=10, in_channels=3, seed=0)
    samples = GivenSamples(torch.rand(32, 3, 16, 16), torch.zeros(32, dtype=torch.int64))
    trial = EngineTrial("openvino:int8", model, samples, chunks=(8, 16))
    take_turns(trial.contestants, rounds=2)
    assert [len(one.rounds) for one in trial.contestants] == [2, 2, 2]
    for one, seconds in zip(trial.contestants, ([0.5, 0.2], [1.0, 0.5], [0.9, 0.8]), strict=True):
        one.rounds[:] = seconds
    found = trial.speed()
    assert (found.refresh_seconds, found.chunk, found.images_per_second) == (0.2, 16, 20.0)
    assert trial.calls[8].rate == 16.0
    assert found.rounds == pytest.approx((16 / 0.9, 20.0))


def test_of_a_run_its_own_images_views_and_weights_are_measured(tmp_path: Path) -> None:
    view = {"view": "random-resized-crop-flip", "crop_size": 6}
    train(RunConfig(epochs=1, batch_size=40, limit=120, threads=1, seed=3, **view), tmp_path / "run", quiet=True)
    source, network, about = subject_of(tmp_path / "run")
    assert (len(source), source.output_size, about["steps"]) == (120, (6, 6), 3)
    stored = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert stored is not None
    assert all(torch.equal(tensor, stored.state["model"][name]) for name, tensor in network.state_dict().items())
    for given in ({"model": "resnet20"}, {"image_size": 8}, {"label_column": "label"}):
        with pytest.raises(ValueError, match=f"measures the run's own {next(iter(given))}: got .*; leave it out"):
            measure_gamma(run=tmp_path / "run", **given)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    everything = as_text(available_cores())
    with pytest.raises(ValueError, match="batch_size must be at least 2: got 1"):
        measure_gamma(batch_size=1)
    with pytest.raises(ValueError, match="without one; name a folder such as runs/NAME"):
        measure_gamma(run=tmp_path)
    with pytest.raises(ValueError, match="unknown model 'resnet45'"):
        measure_gamma(model="resnet45")
    with pytest.raises(ValueError, match=f"the trainer needs one: got oracle_cores '{everything}' .*; name fewer"):
        measure_gamma(oracle_cores=everything, model="resnet8", batch_size=8)
