"""The whole measurement on a small model, and what scripts and people get of it."""

import json
from pathlib import Path

import pytest
import torch

from infer2train.gamma import trainer
from infer2train.gamma.measure import measure_gamma
from infer2train.gamma.peak import int8_gemm_peak, operations_per_image
from infer2train.models.catalogue import build_model
from infer2train.oracle import measurement
from infer2train.oracle.catalogue import missing_packages

pytest.importorskip("jsonargparse", reason="the command line needs jsonargparse")
from infer2train import cli

ENGINE_FIELDS = {
    *("name", "images_per_second", "gamma", "end_to_end_gamma", "refresh_seconds", "captured_gain", "chunk"),
    "peak_share",
}
OWN_ENGINES = ["torch:fp32", *(["onnxruntime:int8"] if not missing_packages("onnxruntime") else [])]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "STEP_SECONDS", 0.02)
    monkeypatch.setattr(measurement, "MEASURED_SECONDS", 0.02)
    monkeypatch.setattr(measurement, "CHUNKS", (8, 16))


def test_the_command_writes_every_field_and_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gamma.json"
    arguments = ["gamma", "--model", "resnet8", "--image-size", "16", "--batch-size", "8", "--threads", "1"]
    assert cli.main([*arguments, "--engines", *OWN_ENGINES, "--json", str(file), "--quiet"]) == 0
    told = capsys.readouterr().out
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
    rounding = [one["captured_gain"] for one in found["engines"] if one["name"] != "torch:fp32"]
    assert all(0.5 < gain <= 1 for gain in rounding)
    assert found["recommended"].keys() == {"engine", "gamma", "update_every", "delay_steps", "verdict"}
    assert found["recommended"]["verdict"] in told
    assert f"--oracle {found['recommended']['engine']}" in told


def test_the_parts_of_a_step_are_those_of_the_paper() -> None:
    model = build_model("resnet8", num_classes=10, in_channels=3, seed=0)
    parts = trainer.step_parts(model, torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))
    assert parts.forward > 0
    assert parts.input_gradients + parts.weight_gradients > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_operations_of_a_known_product_and_a_plausible_peak() -> None:
    assert operations_per_image(torch.nn.Linear(100, 10), torch.ones(1, 100)) == 2000
    assert int8_gemm_peak() > 1e8


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 2: got 1"):
        measure_gamma(batch_size=1)
    with pytest.raises(ValueError, match="without one; name a folder such as runs/NAME"):
        measure_gamma(run=tmp_path)
    with pytest.raises(ValueError, match="unknown model 'resnet45'"):
        measure_gamma(model="resnet45")
