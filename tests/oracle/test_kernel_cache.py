"""A refresh leaves no kernels of earlier programs behind, on whatever CPU: seen in a process of its own, from birth."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.engine import needs

SCRIPT = """
import json, torch
from infer2train.models.cifar_resnet import resnet8
from infer2train.oracle.engines import build_engine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import snapshot

torch.set_num_threads(1)
model, inputs, own = resnet8(10), torch.rand(32, 3, 32, 32), []
engine = build_engine("openvino:int8", model, samples=GivenSamples(inputs, torch.zeros(32, dtype=torch.long)), rows=32)
for version in range(REFRESHES):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.001 * torch.randn_like(weight))
    engine.refresh(engine.calibrated(snapshot(model, version)))
    engine.outputs(inputs)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    own.append(int(status["RssAnon"].split()[0]) / 1000)
print(json.dumps(own))
"""
REFRESHES, SETTLED = 30, 8
BOUND_MB = 3.0
"""Kept, the kernels of these refreshes of this network take about 6 MB."""


def test_memory_does_not_grow_with_refreshes() -> None:
    needs("openvino:int8")
    if not Path("/proc/self/status").exists():
        pytest.skip("a process's own memory is read from /proc")
    script = SCRIPT.replace("REFRESHES", str(REFRESHES))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    own = json.loads(done.stdout.splitlines()[-1])
    assert max(own[SETTLED:]) - own[SETTLED] < BOUND_MB, own
