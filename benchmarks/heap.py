"""What a training step costs when freed memory is kept, beside the allocator's own habit (`machine.memory`).

    taskset -c 1 python benchmarks/heap.py

Processes in turns, one thread, random images. Prints each pair and the median of the ratios: step without / step with.
"""

import argparse
import multiprocessing
import resource
import time
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from infer2train.machine.memory import keep_freed_memory
from infer2train.models.build import build_model
from infer2train.observe.runlog import cpu_name


def main() -> None:
    """Print the pairs."""
    asked = parsed()
    print(
        f"{cpu_name()}, torch {torch.__version__}, 1 thread; {asked.model}, {asked.batch_size} images of {asked.size}"
    )
    ratios = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(asked.pairs):
            without, kept = (pool.apply(step, (asked, keep)) for keep in (False, True))
            ratios.append(without[0] / kept[0])
            faults = f"{without[1]:,.0f} and {kept[1]:,.0f} page faults"
            print(f"{1000 * without[0]:.0f} ms without, {1000 * kept[0]:.0f} ms with: {ratios[-1]:.3f}; {faults}")
    print(f"median {median(ratios):.3f}")


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="by name (default resnet20)")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--batch-size", type=int, default=64, help="images (default 64)")
    parser.add_argument("--steps", type=int, default=30, help="timed of each process (default 30)")
    parser.add_argument("--pairs", type=int, default=5, help="of processes (default 5)")
    return parser.parse_args()


def step(asked: argparse.Namespace, keep: bool) -> tuple[float, float]:
    """Median seconds and mean page faults of a step, in a process that has done nothing else."""
    torch.set_num_threads(1)
    if keep and not keep_freed_memory():
        raise SystemExit("freed memory cannot be kept here: no glibc, or the environment sets its malloc already")
    model = build_model(asked.model, num_classes=10, in_channels=3, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(asked.batch_size, 3, asked.size, asked.size).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (asked.batch_size,))
    seconds: list[float] = []
    before = 0
    for number in range(asked.steps + 3):
        if number == 3:  # the first ones warm up
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            seconds.clear()
        started = time.perf_counter()
        cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return median(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / asked.steps


if __name__ == "__main__":
    main()
