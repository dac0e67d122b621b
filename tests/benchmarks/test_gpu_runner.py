"""`make gpu`: one command fails and the others run, what hangs is stopped, and without a device there is one line."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_runner", FOLDER / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_runner", module)
    spec.loader.exec_module(module)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_command_ends_as_it_says_and_its_last_line_is_kept(
    runner: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    good = runner.run("good", python("import infer2train; print('a table'); print('the verdict'); print()"), 60)
    bad = runner.run("bad", python("raise SystemExit(3)"), 60)
    assert (good.status, good.last_line, bad.status) == (0, "the verdict", 3)
    assert "a table\nthe verdict\n" in capsys.readouterr().out
    assert [line.split()[:2] for line in runner.table([good, bad])] == [["good", "ok"], ["bad", "FAILED"]]


def test_what_hangs_is_stopped_with_what_it_started(runner: ModuleType) -> None:
    """The child holds the pipe, so only when it is gone too is there an end of what is read."""
    code = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; print('started', flush=True); time.sleep(100)"])
time.sleep(100)
"""
    begun = time.monotonic()
    outcome = runner.run("hangs", python(code), 3)
    assert (outcome.status, outcome.word, outcome.last_line) == (None, "TIME UP", "started")
    assert time.monotonic() - begun < 60


def test_every_script_is_run_after_the_tests(runner: ModuleType) -> None:
    found = runner.commands(FOLDER)
    assert list(found) == ["tests", *sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_there_is_one_line_and_no_failure() -> None:
    done = subprocess.run([sys.executable, str(FOLDER)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "CUDA device" in done.stdout
    refused = subprocess.run([sys.executable, str(FOLDER), "--only", "nothing"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "got nothing" in refused.stderr
