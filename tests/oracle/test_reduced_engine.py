"""Oracles at a lower resolution: the mean of pixels, the same weights, and a captured gain against the whole images."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from conformance.engine import needs
from infer2train import mine
from infer2train.cli import main as cli
from infer2train.oracle.engines import build_engine, parse_engine, resolve_engine
from infer2train.oracle.fidelity import fidelity
from infer2train.oracle.measurement import GAIN_SAMPLES, EngineTrial
from infer2train.oracle.reduced_engine import reduced
from infer2train.oracle.samples import PROBE_VIEWS, GivenSamples
from infer2train.oracle.snapshot import snapshot


def network() -> nn.Module:
    """Takes images of any size."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 5))


def images(count: int = 32, side: int = 12) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def built(spec: str, model: nn.Module, x: Tensor) -> Any:
    engine = build_engine(spec, model, samples=GivenSamples(x, torch.arange(len(x)) % 5))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    return engine


@pytest.mark.parametrize("divisor", [2, 3, 4])
def test_a_pixel_is_the_mean_of_those_it_stands_for(divisor: int) -> None:
    x = images()
    got = reduced({"image": x, "length": torch.arange(32)}, divisor)
    blocks = x.unfold(2, divisor, divisor).unfold(3, divisor, divisor)
    torch.testing.assert_close(got["image"], blocks.mean((-2, -1)))
    assert torch.equal(got["length"], torch.arange(32)), "what is no image stays"
    pixels = torch.tensor([[[[0, 1], [1, 1]]]], dtype=torch.uint8)
    assert reduced(pixels, 2).dtype == torch.uint8
    assert reduced(pixels, 2).item() == 1, "rounded, not cut"


def test_it_says_what_the_model_says_of_the_smaller_images() -> None:
    model, x = network().eval(), images()
    engine = built("torch:fp32/2", model, x)
    with torch.no_grad():
        torch.testing.assert_close(engine.outputs(x), model(F.avg_pool2d(x, 2)))
    assert engine.name == "torch:fp32/2"
    assert engine.version == 0
    again = pickle.loads(pickle.dumps(engine))
    with pytest.raises(RuntimeError, match="must be refreshed before"):
        again.outputs(x)
    again.refresh(snapshot(model, 3))
    assert torch.equal(again.outputs(x), engine.outputs(x))


@pytest.mark.parametrize("spec", ["simulated:b8/2", "openvino:int8/2", "onnxruntime:int8/2"])
def test_int8_engines_run_reduced_too(spec: str) -> None:
    needs(spec.partition("/")[0])
    model, x = network().eval(), images()
    engine = built(spec, model, x)
    with torch.no_grad():
        wanted = model(F.avg_pool2d(x, 2))
    assert (engine.outputs(x) - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert set(engine.precisions().values()) <= {"int8", "b8"}


@pytest.mark.parametrize("spec", ["torch:fp32/2", "simulated:b8/2"])
def test_a_model_of_one_size_is_refused_where_its_engine_is_built(spec: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5))
    with pytest.raises(ValueError, match=r"images of another size: got mat1 and mat2 .* at 1/2 of .*; leave /2 out"):
        build_engine(spec, model, samples=GivenSamples(images()))


class Bilinear(nn.Module):
    """OpenVINO has no operation for it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.bilinear = nn.Conv2d(3, 8, 3, padding=1), nn.Bilinear(8, 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x).relu().mean((2, 3))
        return self.bilinear(x, x)


def test_int8_passes_on_to_an_engine_that_can_run_the_model_reduced_too() -> None:
    needs("openvino:int8")
    needs("onnxruntime:int8")
    engine = build_engine("int8/2", Bilinear(), samples=GivenSamples(images()))
    assert engine.name == "onnxruntime:int8/2"
    assert any("openvino:int8 cannot run this model" in note for note in engine.notes)


@pytest.mark.parametrize("spec", ["torch:fp32/", "torch:fp32/1", "torch:fp32/x", "int8/0"])
def test_a_divisor_is_a_whole_number_from_2(spec: str) -> None:
    with pytest.raises(ValueError, match=r"a whole number from 2: got .*; write /2"):
        resolve_engine(spec)


def test_auto_is_of_whole_images() -> None:
    with pytest.raises(ValueError, match="measures whole images: got 'auto/2'; name an engine before the /"):
        resolve_engine("auto/2")


def test_int8_is_resolved_and_keeps_its_divisor() -> None:
    needs("openvino:int8")
    assert resolve_engine("int8/2") == "openvino:int8/2"
    assert parse_engine("openvino:int8@CPU/4").divisor == 4


def test_the_gain_is_against_the_whole_images() -> None:
    model, x = network().eval(), images(64)
    samples = GivenSamples(x, torch.arange(64) % 5)

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    inputs, targets = samples.probe(GAIN_SAMPLES * PROBE_VIEWS)
    with torch.no_grad():
        whole, half = (score(model.eval()(seen), targets) for seen in (inputs, F.avg_pool2d(inputs, 2)))
    wanted = fidelity(half.view(-1, PROBE_VIEWS), whole.view(-1, PROBE_VIEWS)).captured_gain
    assert EngineTrial("torch:fp32/2", model, samples, chunks=(32,))._captured_gain(score) == pytest.approx(wanted)
    assert wanted < 1
    assert EngineTrial("torch:fp32", model, samples, chunks=(32,))._captured_gain(score) is None


def test_a_loop_mines_with_it() -> None:
    model = network()
    base = DataLoader(TensorDataset(images(64), torch.arange(64) % 5), batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings: dict[str, Any] = {"method": "nm-sample", "ramp_rate": 1.0, "gamma": 2, "update_every": 2}
    loader = mine(base, model, optimizer, oracle="torch:fp32/2", **settings)
    for _ in range(2):
        for x, y in loader:
            assert x.shape[2:] == (12, 12), "what is trained on is whole"
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "torch:fp32/2 scores images at 1/2 of their height and width" in loader.notes
    loader.close()


def test_a_run_with_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("openvino:int8")
    monkeypatch.chdir(tmp_path)
    command = "train --epochs 2 --lr-drops [1] --method nm-augment --gamma 2 --threads 1 --name a --quiet"
    command += " --oracle int8/2"
    assert cli.main(command.split()) == 0
    assert cli.main([*command.split(), "--resume"]) == 0
    assert "oracle: openvino:int8/2" in Path("runs/a/config.yaml").read_text(encoding="utf-8")


def test_an_arm_with_it_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = "compare --epochs 1 --lr-drops [1] --gamma 2 --threads 1 --seeds 1 --name c --quiet --methods baseline"
    assert cli.main([*command.split(), "nm-augment@torch:fp32/2"]) == 0
    assert Path("runs/c/nm-augment@torch-fp32-2-seed0/config.yaml").is_file()


def test_inputs_without_an_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got /2 for inputs without any of \[n, channels, height, width\]; leave it"):
        built("torch:fp32/2", nn.Linear(6, 3), torch.zeros(16, 6))
