"""Engines tell nobody that they are used, and leave no process behind: seen in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from conformance.engine import needs

SCRIPT = """
import sys, threading, torch
from infer2train.models.cifar_resnet import resnet8
from infer2train.oracle.engines import build_engine
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import snapshot

seen, watched = [], ("os.fork", "socket.connect", "urllib.Request")
sys.addaudithook(lambda event, details: seen.append(event) if event in watched else None)
model, inputs = resnet8(10), torch.rand(32, 3, 32, 32)
engine = build_engine("openvino:int8", model, samples=GivenSamples(inputs, torch.zeros(32, dtype=torch.long)), rows=32)
engine.refresh(engine.calibrated(snapshot(model, 0)))
engine.outputs(inputs)
import openvino
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
print(seen, [name for name in sys.modules if name.startswith("openvino_telemetry.")])
"""


def test_building_an_engine_reports_to_nobody_and_forks_nothing(tmp_path: Path) -> None:
    needs("openvino:int8")
    if sys.platform == "win32":
        pytest.skip("home is another variable there")
    environment = {"PATH": "", "HOME": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] []"
    assert not (tmp_path / "intel").exists(), "where it keeps an identity of this user"
