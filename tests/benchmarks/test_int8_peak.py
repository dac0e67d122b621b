"""What the script adds up: operations of a known product, and joules from counters as Linux lays them out."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "int8_peak.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("int8_peak", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_of_a_known_product_and_a_plausible_peak(script: ModuleType) -> None:
    assert script.operations_per_image(torch.nn.Linear(100, 10), torch.ones(1, 100)) == 2000
    assert script.fastest_product().rate > 1e8


def counter(folder: Path, name: str, microjoules: str) -> None:
    (folder / name).mkdir()
    (folder / name / "energy_uj").write_text(microjoules)


def test_packages_are_added_up_and_their_parts_left_out(script: ModuleType, tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", "2500000\n")
    counter(tmp_path, "intel-rapl:1", "1000000\n")
    counter(tmp_path, "intel-rapl:0:0", "9000000\n")
    assert script.read_joules(tmp_path) == 3.5


def test_nothing_is_made_up_where_nothing_can_be_read(script: ModuleType, tmp_path: Path) -> None:
    assert script.read_joules(tmp_path) is None
    counter(tmp_path, "intel-rapl:0", "")
    assert script.read_joules(tmp_path) is None


@pytest.mark.parametrize(("readings", "expected"), [((10.0, 13.0), 3.0), ((None,), None), ((13.0, 10.0), None)])
def test_energy_of_a_call_is_what_the_counter_gained(
    script: ModuleType, readings: tuple[float | None, ...], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter that went back has overflowed, and says nothing."""
    left = list(readings)
    monkeypatch.setattr(script, "read_joules", lambda: left.pop(0))
    assert script.joules_of(lambda: None, seconds=0.0) == expected


def test_a_device_that_does_not_tell_is_left_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container without NVIDIA's library; there is no such package here."""

    def refuse() -> None:
        raise OSError("NVML Shared Library Not Found")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=refuse, NVMLError=OSError))
    assert script.read_joules(tmp_path) is None
    counter(tmp_path, "intel-rapl:0", "2500000\n")
    assert script.read_joules(tmp_path) == 2.5
