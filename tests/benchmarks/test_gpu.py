"""`make gpu` says in one sentence where there is nothing to run on; its benchmark is an ordinary training anywhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_without_a_device_there_is_one_sentence_and_no_failure() -> None:
    command = ["make", "--silent", "gpu", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "CUDA device" in done.stdout


def test_the_ratio_of_steps_is_measured_on_a_cpu_too() -> None:
    tiny = "--device cpu --compile none --model resnet8 --batch-size 8 --gamma 2 --images 48 --log-every 2".split()  # noqa: SIM905
    surroundings = os.environ | {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/step_ratio.py", *tiny, "--update-every", "4", "--epochs", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["none", "baseline"], ["none", "nm-augment"]]
    assert all(float(row[2]) > 0 for row in rows)
