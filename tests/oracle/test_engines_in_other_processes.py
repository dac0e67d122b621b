"""Engines that are built here and run in a process of their own, which has converted nothing."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conformance.engine import converted, needs, trained
from conformance.networks import NETWORKS
from infer2train.oracle.engine import Engine
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.torch_engine import TorchEngine

pytestmark = pytest.mark.usefixtures("one_thread")

ELSEWHERE = """
import pickle, sys
import torch
from infer2train.oracle.snapshot import Record
torch.set_num_threads(1)
engine = pickle.load(sys.stdin.buffer)
content, inputs = pickle.load(sys.stdin.buffer)
record = Record(*content)
ranges = engine.calibrated(Record(record.version, record.tensors)).ranges
engine.refresh(record)
outputs = engine.outputs(inputs)
converters = [name for name in ("torch._dynamo", "torch.onnx", "openvino.frontend.pytorch") if name in sys.modules]
pickle.dump((outputs, engine.precisions(), dict(ranges), converters), sys.stdout.buffer)
"""


@pytest.mark.parametrize("spec", ["torch:bf16", "simulated:b8", "openvino:int8", "onnxruntime:int8"])
def test_an_engine_gives_the_same_bits_in_a_process_that_unpickles_it(spec: str) -> None:
    needs(spec)
    model, inputs = trained("vgg"), NETWORKS["vgg"][1](13)
    engine: Engine = TorchEngine(model, precision="bf16") if spec == "torch:bf16" else converted(spec, "vgg")
    record = engine.calibrated(snapshot(model, 3))
    engine.refresh(record)
    outputs = engine.outputs(inputs).clone()
    content = (record.version, dict(record.tensors), dict(record.ranges))
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickle.dumps(engine) + pickle.dumps((content, inputs)),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    others, precisions, ranges, converters = pickle.loads(done.stdout)
    assert torch.equal(outputs, others)
    assert precisions == engine.precisions()
    assert ranges.keys() == record.ranges.keys()
    assert all(torch.equal(record.ranges[name], extremes) for name, extremes in ranges.items())
    assert converters == [], "nothing is exported or converted anew"
