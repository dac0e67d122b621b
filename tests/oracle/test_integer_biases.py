"""ONNX Runtime adds biases as 32-bit integers, and so does the specification: the two agree to the last bit."""

import pytest
import torch

from conformance.engine import needs
from conformance.networks import ViT, experienced, images
from infer2train.oracle.engines import build_engine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_no_tie_falls_the_other_way(seed: int) -> None:
    needs("onnxruntime:int8")
    torch.manual_seed(seed)
    inputs = images(16)
    model = experienced(ViT(), inputs, seed)
    samples = GivenSamples(inputs, torch.zeros(16, dtype=torch.long))
    engine = build_engine("onnxruntime:int8", model, samples=samples, rows=16)
    engine.refresh(engine.calibrated(snapshot(model, 1)))
    assert engine.totals()["deviation_sum"] < 1e-3, "with real biases in the simulation it is 1 to 3 steps"
