"""What a mined step costs over an ordinary one on a CUDA device: one seed alone, and as many side by side as fill it.

ResNet-44 at 32x32, B = 64, γ = 10, random pixels (the arithmetic is that of CIFAR-10). Every way of making steps is
warmed up, then timed in blocks of 100 steps, which hold one refresh of the oracle each; the medians of the blocks are
told, with the ratio to the baseline made the same way and what 90 epochs of CIFAR-10 would take (without evaluation).

    python benchmarks/gpu/step_ratio.py
    python benchmarks/gpu/step_ratio.py --seeds 1 4 8 --precision bf16 --oracle torch:fp16
"""

import argparse
import gc
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from infer2train.data.images import ImageData, ImageSplit
from infer2train.training.config import from_plain
from infer2train.training.device_steps import DeviceSteps
from infer2train.training.interrupt import Interrupt
from infer2train.training.loop import _batch_by_batch
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import Run, assembled, resolved
from infer2train.training.step import EpochSums
from infer2train.training.streams import own_stream
from infer2train.training.ways import images_on_device, way_of

EPOCHS, STEPS_PER_EPOCH = 90, 781
"""Of the paper's CIFAR-10 training."""
METHODS = ("baseline", "nm-augment")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Steps of one method, made one way."""

    method: str
    way: str
    seeds: int
    step_seconds: float
    """Wall-clock in which every seed makes one step."""
    spread: float
    """Of the blocks: (highest − lowest) / median."""
    peak_bytes: int


def main() -> None:
    """Time everything asked for, then show it."""
    args = parsed()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("step_ratio: skipped, since this machine has no CUDA device that torch can use")
        return
    data = random_images(args.images)
    timings: list[Timing] = []
    for way in args.ways:
        for seeds in args.seeds if way == "graph" or args.device == "cpu" else [1]:
            for method in METHODS:
                timings.append(timed(args, data, method, way, seeds))
                print(told(timings[-1]), file=sys.stderr, flush=True)
    show(args, timings)


def parsed() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--ways", nargs="+", default=["loop", "eager", "graph"], help="of making steps, see --step of train")
    add("--seeds", nargs="+", type=int, default=[1, 2, 4, 8], help="side by side, as graphs")
    add("--model", default="resnet44")
    add("--batch-size", type=int, default=64)
    add("--gamma", type=int, default=10)
    add("--oracle", default="torch:bf16")
    add("--precision", default="fp32", choices=["fp32", "bf16"])
    add("--update-every", type=int, default=100)
    add("--images", type=int, default=50_000)
    add("--block", type=int, default=100, help="steps timed at once")
    add("--blocks", type=int, default=5)
    return parser.parse_args()


def random_images(count: int) -> ImageData:
    """Pixels and classes of no meaning."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    split = ImageSplit(images, generator.integers(0, 10, count))
    names = tuple(str(label) for label in range(10))
    return ImageData("random", split, ImageSplit(images[:10], split.targets[:10]), names, "", 0)


def made(args: argparse.Namespace, data: ImageData, method: str, way: str, seed: int) -> Run:
    """A run of the paper's CIFAR-10 regime on these images."""
    settings = {
        **regime_defaults("cifar10-resnet44", method),
        **{name: getattr(args, name) for name in ("device", "model", "batch_size", "gamma", "precision")},
        **{"oracle": args.oracle, "update_every": args.update_every, "seed": seed, "step": way},
    }
    config = resolved(from_plain(settings))
    return assembled(config, data, data.train, data.test, torch.device(args.device))


def steps_of(run: Run) -> Iterator[Any]:
    """Steps without end, made as the run asks for."""
    way, _ = way_of(run)
    sums = EpochSums()
    epoch: Callable[[], Iterator[Any]] = partial(_batch_by_batch, run, sums)
    if way != "loop":
        epoch = DeviceSteps(run, images_on_device(run), sums, Interrupt(), is_recorded=way == "graph").epoch
    while True:
        yield from epoch()


def timed(args: argparse.Namespace, data: ImageData, method: str, way: str, seeds: int) -> Timing:
    """Blocks of steps, each begun by all seeds together and done when the last of them is."""
    if args.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runs = [made(args, data, method, way, seed) for seed in range(seeds)]
    gate, failed = threading.Barrier(seeds + 1), []

    def train(run: Run) -> None:
        try:
            with own_stream(run.device):
                steps = steps_of(run)
                for _ in range(args.blocks + 1):
                    gate.wait()
                    for _ in range(args.block):
                        next(steps)
                    if run.device.type == "cuda":
                        torch.cuda.current_stream().synchronize()
                    gate.wait()
        except BaseException as error:
            failed.append(error)
            gate.abort()
            raise

    threads = [threading.Thread(target=train, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    blocks: list[float] = []
    try:
        for _ in range(args.blocks + 1):
            gate.wait()
            started = perf_counter()
            gate.wait()
            blocks.append((perf_counter() - started) / args.block)
    except threading.BrokenBarrierError:
        raise RuntimeError(f"{method}, {way}, {seeds} seeds: {failed[0] if failed else 'a thread ended'}") from None
    finally:
        for thread in threads:
            thread.join()
    for run in runs:
        run.loader.close()
    # Reserved: what a graph frees inside itself stays with it, and is not counted as allocated.
    peak = torch.cuda.max_memory_reserved() if args.device != "cpu" else 0
    runs.clear()
    gc.collect()
    # The first block warms up and records.
    median = statistics.median(blocks[1:])
    spread = (max(blocks[1:]) - min(blocks[1:])) / median
    return Timing(method=method, way=way, seeds=seeds, step_seconds=median, spread=spread, peak_bytes=peak)


def told(timing: Timing) -> str:
    """One line while the rest goes on."""
    return f"{timing.method}, {timing.way}, {timing.seeds} seeds: {timing.step_seconds * 1e3:.2f} ms"


def show(args: argparse.Namespace, timings: list[Timing]) -> None:
    """The table, last: what is quoted."""
    name = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    table = Table(
        title=f"{args.model}, B = {args.batch_size}, γ = {args.gamma}, trainer {args.precision}, oracle {args.oracle}, "
        f"T = {args.update_every}; torch {torch.__version__}, {name}",
        caption=f"medians of {args.blocks} blocks of {args.block} steps; all seeds make a step in that time; "
        "convolutions of fp32 are TF32, but for self-distill",
    )
    titles = ("steps", "seeds", "method", "ms a step", "spread", "ratio", "images/s", f"{EPOCHS} epochs", "peak memory")
    for title in titles:
        table.add_column(title, justify="left" if title in ("steps", "method") else "right")
    for timing in timings:
        baseline = next(t for t in timings if (t.method, t.way, t.seeds) == (METHODS[0], timing.way, timing.seeds))
        table.add_row(
            timing.way,
            str(timing.seeds),
            timing.method,
            f"{timing.step_seconds * 1e3:.2f}",
            f"{timing.spread:.0%}",
            f"{timing.step_seconds / baseline.step_seconds:.2f}",
            f"{timing.seeds * args.batch_size / timing.step_seconds:,.0f}",
            f"{timing.step_seconds * EPOCHS * STEPS_PER_EPOCH / 60:.1f} min",
            f"{timing.peak_bytes / 2**30:.1f} GiB",
        )
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


if __name__ == "__main__":
    main()
