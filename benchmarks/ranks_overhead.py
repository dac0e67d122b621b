"""What the gather of scores costs a step, on two ranks of this machine joined by Gloo.

Each rank trains a ResNet-20 on images in memory, B = 32, mined by nm-sample. Before each gather the ranks wait for each
other, so that what is timed is the exchange, and not that one oracle was slower than another. It is compared with the
same steps without it; the bound is 2 %.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/ranks_overhead.py
"""

import argparse
import statistics
from time import perf_counter
from typing import Any

import torch
from torch import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import infer2train
from infer2train.loader.ranks import Ranks
from infer2train.models.build import build_model
from infer2train.observe.runlog import cpu_name


class Stopwatch:
    """Times `Ranks.of_all`, the ranks being there."""

    def __init__(self) -> None:
        self.seconds = 0.0
        exchange = Ranks.of_all

        def timed(ranks: Ranks, *args: Any, **kwargs: Any) -> Any:
            distributed.barrier()
            started = perf_counter()
            found = exchange(ranks, *args, **kwargs)
            self.seconds += perf_counter() - started
            return found

        Ranks.of_all = timed  # type: ignore[method-assign]

    def taken(self) -> float:
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def main() -> None:
    """Train, and print medians over steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--gamma", type=int, default=4)
    arguments = parser.parse_args()
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(4096, 3, 32, 32), torch.arange(4096) % 10)
    model = DistributedDataParallel(build_model("resnet20", num_classes=10, in_channels=3, seed=0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    base = DataLoader(data, batch_size=32, sampler=DistributedSampler(data))
    loader = infer2train.mine(
        base, model, optimizer, method="nm-sample", gamma=arguments.gamma, ramp_start=0.0, ramp_stop=0.0, epochs=1
    )
    watch, rows = Stopwatch(), []
    started = perf_counter()
    for images, targets in loader:
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        rows.append((perf_counter() - started, watch.taken()))
        started = perf_counter()
        if len(rows) == arguments.steps:
            break
    steps, gathers = (statistics.median(column) for column in zip(*rows[5:], strict=True))
    if distributed.get_rank() == 0:
        print(f"{cpu_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {len(rows)} steps")
        share = gathers / (steps - gathers)
        print(f"step {1e3 * steps:.1f} ms, of it the gather {1e3 * gathers:.2f} ms: {share:.2%} of a step without")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
