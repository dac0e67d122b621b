"""What torch.compile makes of trainer and oracle trains as they do, under the same names, and goes on exactly.

In processes of their own: the tests' type checker and torch.compile do not go together. Built once, what is compiled
here stays in torch's own cache for later runs.
"""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infer2train.observe.runlog import read_rows
from run_processes import Moment, command_line

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="no C++ compiler: torch.compile has nothing to build with",
)
UPDATE_EVERY = CHECKPOINT_EVERY = 3
TINY = (
    f"train --method nm-augment --gamma 2 --epochs 2 --batch-size 40 --lr 0.01 --threads 1 --train-error-samples 0 "
    f"--log-every 1 --update-every {UPDATE_EVERY} --checkpoint-every {CHECKPOINT_EVERY}"
).split()
COMPILED = ["--oracle", "torch:fp32+compile", "--compile"]
OWN_MODELS = """
from torch import nn

def small(num_classes, in_channels):
    convolution = nn.Conv2d(in_channels, 4, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))

def dropping(num_classes, in_channels):
    return nn.Sequential(nn.Dropout(), small(num_classes, in_channels))
"""
SLOW_ON_CPU = pytest.param("cpu", "reduce-overhead", marks=pytest.mark.slow)
ON_CUDA = [pytest.param("cuda", mode, marks=pytest.mark.gpu) for mode in ("default", "reduce-overhead")]


@dataclass
class Work:
    """A folder to start runs in."""

    folder: Path

    def train(self, name: str, *more: str, moment: Moment | None = None) -> tuple[int, str]:
        arguments = (*TINY, "--name", name, *more)
        return command_line(self.folder, *arguments, moment=moment, limit_seconds=800)

    def trained(self, name: str, *more: str) -> None:
        status, output = self.train(name, *more)
        assert status == 0, output

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [row for row in read_rows(self.folder / "runs" / name) if row["kind"] == "step"]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Of the last checkpoint."""
        return load_file(max((self.folder / "runs" / name / "checkpoints").glob("step-*")) / "tensors.safetensors")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    (folder / "own.py").write_text(OWN_MODELS)
    return Work(folder)


@needs_compiler
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("device", "mode"), [("cpu", "default"), SLOW_ON_CPU, *ON_CUDA])
def test_it_trains_as_the_plain_one_and_keeps_all_names(device: str, mode: str, work: Work) -> None:
    own = ["--model", "own:small", "--device", device]
    plain, name = f"plain-{device}-{mode}", f"{device}-{mode}"
    work.trained(plain, *own)
    work.trained(name, *own, *COMPILED, mode)
    losses, expected = ([row["loss"] for row in work.rows(run)] for run in (name, plain))
    assert losses == pytest.approx(expected, rel=1e-4 if device == "cpu" else 1e-2)
    assert [row["version"] for row in work.rows(name)] == [row["version"] for row in work.rows(plain)]
    assert work.tensors(name).keys() == work.tensors(plain).keys()
    status, output = command_line(work.folder, "eval", f"runs/{name}")
    assert status == 0, output


@needs_compiler
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["small", pytest.param("dropping", marks=pytest.mark.slow)])
def test_it_goes_on_exactly(model: str, work: Work) -> None:
    """Killed in the second epoch; a model that draws goes on drawing what it would have drawn."""
    how = ["--model", f"own:{model}", *COMPILED, "default"]
    killed = Moment("before", "infer2train.training.loop:train_step", 8)
    work.trained(f"whole-{model}", *how)
    status, output = work.train(f"broken-{model}", *how, moment=killed)
    assert status == -signal.SIGKILL, output
    work.trained(f"broken-{model}", *how, "--resume")
    found, expected = work.tensors(f"broken-{model}"), work.tensors(f"whole-{model}")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    status, output = work.train(f"broken-{model}", *how, "--compile", "none", "--resume")
    assert status == 2, output
    assert "compile: 'default' -> 'none'" in output


def test_without_a_compiler_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    surroundings = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    code = "import sys; from infer2train.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *TINY, "--name", "a", "--compile", "default"]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "C++ compiler" in done.stderr
    assert "pass --compile none" in done.stderr
    assert not (tmp_path / "runs").exists()
