"""`infer2train plan` against real runs: the predicted step and the measured one, with 1, 2 and 4 process workers.

Cores are short here, so that trainer and workers are slowed by known waits, in which a core does nothing: the trainer
sleeps after each step, and the score function sleeps at each chunk, as a slower network would take so long. Waits of
several processes truly overlap, on however few cores. What plan is given is measured as always: a step without an
oracle, a draw and a refresh of the oracle in the trainer's own time.

    python benchmarks/plan.py            # about 4 minutes

The bound is 15 %.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader

import infer2train
from infer2train.draws.scores import loss
from infer2train.machine.cores import available_cores
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.sources.views.crops import PadCropFlip
from infer2train.sources.views.image_views import ImageViews
from infer2train.studies.plan import Costs, Planned, planned

BATCH, GAMMA, CHUNK = 16, 10, 32
BOUND = 0.15


class Slowed:
    """The loss, and a wait at each chunk."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        time.sleep(self._seconds)
        return loss(outputs, targets)


class Run:
    """A training whose steps take at least so long."""

    def __init__(self, options: argparse.Namespace, **settings: Any) -> None:
        torch.manual_seed(0)
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (3200, 16, 16, 3), dtype=np.uint8)
        source = ImageViews(pixels, generator.integers(0, 10, 3200), PadCropFlip(2))
        network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10))
        self.network = Pixels(network, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.optimizer = SGD(self.network.parameters(), lr=0.01)
        base: DataLoader[Any] = DataLoader(source, batch_size=BATCH, shuffle=True, drop_last=True)
        self.loader = infer2train.mine(
            base, self.network, self.optimizer, gamma=GAMMA, update_every=options.update_every, **settings
        )
        self._wait, self._batches = options.step, self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def steps(self, count: int) -> float:
        """Seconds a step."""
        self.loader.metrics()
        started = perf_counter()
        for images, targets in islice(self._batches, count):
            F.cross_entropy(self.network(images), targets).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            time.sleep(self._wait)
        return (perf_counter() - started) / count


def measured(options: argparse.Namespace) -> Costs:
    """What plan is given."""
    baseline = Run(options, method="baseline")
    baseline.steps(2)
    step = baseline.steps(options.update_every)
    inline = Run(options, score=Slowed(options.chunk), oracle_chunk=CHUNK)
    inline.steps(1)
    inline.steps(options.update_every)
    found = inline.loader.metrics()
    for run in (baseline, inline):
        run.loader.close()
    draws = found["mined_draws"]  # of one version, which was published and taken once
    return Costs(
        oracle="slowed",
        step=step,
        draw=(found["oracle_views_seconds"] + found["oracle_forward_seconds"]) / draws,
        refresh=found["oracle_refresh_seconds"],
        publish=max(0.0, found["publishing_seconds"] - found["oracle_refresh_seconds"]),
    )


def real(options: argparse.Namespace, row: Planned) -> list[float]:
    """Steps with that many workers, version by version."""
    run = Run(
        options,
        score=Slowed(options.chunk),
        oracle_chunk=CHUNK,
        pool=options.pool,
        oracle_workers=row.workers,
        oracle_cores=",".join(map(str, options.cores)) if options.cores else None,
        queue_depth=row.queue_depth,
    )
    run.steps(2 * options.update_every)  # until all workers have started
    seconds = [run.steps(options.update_every) for _ in range(options.versions)]
    run.loader.close()
    return seconds


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--step", type=float, default=0.3, help="wait of the trainer in a step (s)")
    parser.add_argument("--chunk", type=float, default=0.16, help="wait of the oracle at a chunk (s)")
    parser.add_argument("--update-every", type=int, default=20)
    parser.add_argument("--versions", type=int, default=3)
    parser.add_argument("--pool", default="process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # More workers than cores: they wait most of the time, so that a core serves several.
    options.cores = available_cores() if max(options.workers) <= len(available_cores()) else ()
    print(f"{cpu_name()}, cores {available_cores()}, torch {torch.__version__}, T = {options.update_every}, D = 0")
    costs = measured(options)
    print(f"step alone {costs.step * 1e3:.0f} ms, draw {costs.draw * 1e3:.0f} ms, refresh {costs.refresh * 1e3:.1f} ms")
    holds = True
    for workers in options.workers:
        row = planned(costs, workers, update_every=options.update_every)
        seconds = real(options, row)
        step = statistics.median(seconds)
        holds &= abs(row.step / step - 1) <= BOUND
        print(
            f"{workers} workers: predicted {row.step * 1e3:.0f} ms, measured {step * 1e3:.0f} ms "
            f"({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f}), off by {row.step / step - 1:+.1%}",
            flush=True,
        )
    print(f"within {BOUND:.0%}: {holds}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
