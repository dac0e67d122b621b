"""Whether an hour of training with an oracle in its own process leaks: memory, descriptors, processes, segments.

The trainer refreshes its int8 oracle every 20 steps. Every ten seconds the resident memory and the open descriptors of
every process of the run are read, and what it has of shared memory. What has grown since the first tenth of the run is
reported; more than 50 MB in any process, one more descriptor or process, or a process that ended and was not waited
for, fails.

    python benchmarks/endurance.py                 # an hour
    python benchmarks/endurance.py --minutes 5
"""

import argparse
import os
import sys
import threading
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import infer2train
from infer2train.machine.cores import available_cores, on_cores
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews

BOUND_MB = 50
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
SETTLED = 0.1
"""Part of the run after which nothing should grow any more."""


@dataclass
class Watched:
    """What was read of one process."""

    name: str
    seconds: list[float] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


def family() -> dict[int, str]:
    """This process and all below it: process id -> what it is."""
    parents, zombies = {}, set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                status = (folder / "stat").read_text()
            except OSError:
                continue
            state, parent = status.rpartition(")")[2].split()[:2]
            parents[int(folder.name)] = int(parent)
            if state == "Z":
                zombies.add(int(folder.name))
    found = {os.getpid(): "trainer"}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        for pid in more:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            found[pid] = "resource tracker" if "resource_tracker" in command else "oracle"
    return {pid: "zombie" if pid in zombies else name for pid, name in found.items()}


def read(watched: dict[int, Watched], segments: set[Path], started: float) -> None:
    """One look at every process; the named shared memory that any has open is added to `segments`."""
    for pid, name in family().items():
        try:
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            mapped = Path(f"/proc/{pid}/maps").read_text().split()
        except OSError:
            continue
        segments |= {Path(word) for word in mapped if word.startswith("/dev/shm/")}
        seen = watched.setdefault(pid, Watched(name))
        seen.name = name
        seen.seconds.append(perf_counter() - started)
        seen.resident_mb.append(resident)
        seen.descriptors.append(descriptors)


def train(options: argparse.Namespace, stop: threading.Event) -> tuple[int, dict[str, float]]:
    """Train until told to stop; steps, and what was measured."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5_000, 32, 32, 3), dtype=np.uint8)
    source = ImageViews(pixels, generator.integers(0, 10, 5_000), PadCropFlip(4))
    network: Any = Pixels(build_model(options.model, num_classes=10, in_channels=3, seed=0), (0.5,) * 3, (0.25,) * 3)
    network = network.to(memory_format=torch.channels_last)
    optimizer = SGD(network.parameters(), lr=0.01, momentum=0.9)
    base: DataLoader[Any] = DataLoader(source, batch_size=64, shuffle=True, drop_last=True)
    loader = infer2train.mine(
        base,
        network,
        optimizer,
        gamma=options.gamma,
        oracle=options.oracle,
        update_every=options.update_every,
        pool="process",
        oracle_cores=str(available_cores()[-1]),
    )
    for _ in count():
        for images, targets in loader:
            F.cross_entropy(network(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
            if stop.is_set():
                figures = loader.metrics()
                loader.close()
                return loader.steps, figures
    raise AssertionError


def main() -> None:
    """Train, watch, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--oracle", default="openvino:int8")
    parser.add_argument("--gamma", type=int, default=10)
    parser.add_argument("--update-every", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watched: dict[int, Watched] = {}
    segments: set[Path] = set()
    stop, started = threading.Event(), perf_counter()

    def watch() -> None:
        while perf_counter() - started < options.minutes * 60:
            sleep(min(10.0, options.minutes * 3))
            read(watched, segments, started)
            print(f"\r{(perf_counter() - started) / 60:.1f} minutes", end="", file=sys.stderr, flush=True)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    with on_cores(available_cores()[:1]):
        steps, figures = train(options, stop)
    print(file=sys.stderr)
    left = [name for pid, name in family().items() if pid != os.getpid() and name != "resource tracker"]
    left_segments = sorted(path.name for path in segments if path.exists())
    print(
        f"{options.model}, {options.oracle}, refreshed every {options.update_every} steps: {steps} steps and "
        f"{figures.get('refreshes', 0):.0f} refreshes in {options.minutes:g} minutes on {cpu_name()}"
    )
    failed = bool(left or left_segments)
    for pid, seen in watched.items():
        settled = [i for i, at in enumerate(seen.seconds) if at >= SETTLED * options.minutes * 60]
        if len(settled) < 3:  # the interpreter starts some that live for a moment
            continue
        memory, files = ([column[i] for i in settled] for column in (seen.resident_mb, seen.descriptors))
        failed |= seen.name == "zombie"
        growth, more = max(memory) - memory[0], max(files[-6:]) - max(files[:6])
        failed |= growth > BOUND_MB or more > 0
        print(
            f"{seen.name} {pid}: resident {memory[0]:.0f} MB after a tenth of the run, at most {max(memory):.0f} MB "
            f"(+{growth:.1f}, asked at most +{BOUND_MB}), {memory[-1]:.0f} MB at the end; descriptors {files[0]} -> "
            f"{files[-1]}"
        )
    print(f"processes left: {left or 'none'}; named segments left: {left_segments or 'none'}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
