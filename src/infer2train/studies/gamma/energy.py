"""Joules, where the machine says: RAPL's counters on Linux, NVML's on NVIDIA devices."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

RAPL = Path("/sys/class/powercap")


def joules_of(call: Callable[[], object], seconds: float = 1.0) -> float | None:
    """Energy of one call: the mean over calls that take `seconds` together; None where nothing can be read."""
    before = read_joules()
    if before is None:
        return None
    started, count = perf_counter(), 0
    while count == 0 or perf_counter() - started < seconds:
        call()
        count += 1
    after = read_joules()
    return None if after is None or after < before else (after - before) / count


def read_joules(root: Path = RAPL) -> float | None:
    """Energy used so far by all processor packages and NVIDIA devices (joules); None where none can be read."""
    found = [*_packages(root), *_devices()]
    return sum(found) if found else None


def _packages(root: Path) -> list[float]:
    found = []
    for path in sorted(root.glob("intel-rapl:*/energy_uj")):
        if path.parent.name.count(":") == 1:  # a package; what lies below it is a part of it
            try:
                found.append(int(path.read_text()) / 1e6)
            except (OSError, ValueError):  # only root may read it on most machines
                continue
    return found


def _devices() -> list[float]:
    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles]
    except pynvml.NVMLError:  # a container without the library, a part of a device, a virtual one
        return []
