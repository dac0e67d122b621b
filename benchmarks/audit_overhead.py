"""What keeping the picks costs: step time with the record of what was picked ÷ without, in turns, in one process.

    taskset -c 0 python benchmarks/audit_overhead.py [rounds]

ResNet-20, 32 x 32, batches of 64; nm-augment (γ = 10) and nm-sample (γ = 10), every draw mined, oracle torch:fp32 on
the trainer's core. Each round times as many steps of one loader as of the other; the ratio is the median over rounds.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import infer2train
from infer2train.models.build import build_model
from infer2train.sources.views.crops import PadCropFlip

STEPS = 4
METHODS: dict[str, dict[str, Any]] = {
    "nm-augment": {},
    "nm-sample": {"ramp_start": 0.0, "ramp_stop": 0.0},
}


class Loop:
    """A training loop that goes on from where it was."""

    def __init__(self, folder: Path, method: str, audit: str) -> None:
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (6400, 32, 32, 3), dtype=np.uint8)
        data = infer2train.ImageViews(images, generator.integers(0, 10, 6400), PadCropFlip())
        self.model = build_model("resnet20", num_classes=10, in_channels=3, seed=0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        base: DataLoader[Any] = DataLoader(data, batch_size=64, shuffle=True)
        self.loader = infer2train.mine(
            base,
            self.model,
            self.optimizer,
            method=method,
            audit=audit,
            log_dir=folder,
            split=_split,
            **METHODS[method],
        )
        self._batches = iter(self.loader)

    def seconds(self) -> float:
        started = perf_counter()
        for _ in range(STEPS):
            try:
                x, y = next(self._batches)
            except StopIteration:
                self._batches = iter(self.loader)
                x, y = next(self._batches)
            torch.nn.functional.cross_entropy(self.model(x.float() / 255), y).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (perf_counter() - started) / STEPS


def _split(batch: Any) -> tuple[Any, Any]:
    return batch[0].float() / 255, batch[1]


def main(rounds: int = 15) -> None:
    """Print the ratio for each method."""
    torch.set_num_threads(1)
    for method in METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            loops = {audit: Loop(Path(scratch) / audit, method, audit) for audit in ("off", "sampled")}
            for loop in loops.values():
                loop.seconds()
            ratios, steps = [], []
            for number in range(rounds):
                order = list(loops) if number % 2 else list(loops)[::-1]
                taken = {audit: loops[audit].seconds() for audit in order}
                ratios.append(taken["sampled"] / taken["off"])
                steps.append(taken["off"])
            low, high = sorted(ratios)[len(ratios) // 4], sorted(ratios)[-1 - len(ratios) // 4]
            print(
                f"{method}: step {1000 * statistics.median(steps):.1f} ms; with picks on record "
                f"{statistics.median(ratios):.4f} x (quartiles {low:.4f} to {high:.4f}, {rounds} rounds of {STEPS})"
            )
            for loop in loops.values():
                loop.loader.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
