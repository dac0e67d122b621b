"""How fast candidates are scored on one core: the trainer's own modules on one large batch, or the engine in chunks.

A draw of γ·B = 640 candidates of 32x32 goes once through the trainer's modules (evaluation mode, no gradients, one
batch: what selection code in a training loop usually does) and once through each engine, in chunks of each size.
Repetitions are interleaved, so that a busy machine slows all alike; medians and ratios are printed, ratios of each
repetition with its own baseline.

    python benchmarks/scoring.py --model resnet44 --repetitions 7
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.oracle.engine import Engine
from infer2train.oracle.engines import build_engine
from infer2train.oracle.snapshot import snapshot

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet44")
    parser.add_argument("--size", type=int, default=32, help="height and width (pixels)")
    parser.add_argument("--images", type=int, default=640, help="candidates of a draw")
    parser.add_argument("--engines", nargs="+", default=["torch:fp32", "torch:bf16"])
    parser.add_argument("--chunks", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu leaves out waiting for a core, where others work too",
    )
    return parser.parse_args()


def in_chunks(engine: Engine, images: Tensor, chunk: int) -> Callable[[], None]:
    """Scores all images, `chunk` at a time."""

    def run() -> None:
        for part in torch.split(images, chunk):
            engine.outputs(part)

    return run


def seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """Time of one run on a clock."""
    start = clock()
    run()
    return clock() - start


def processor() -> str:
    """The processor's name as its maker gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure, and print one row for each way of scoring."""
    options = arguments()
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    network = build_model(options.model, num_classes=10, in_channels=3, seed=0)
    model = Pixels(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()
    shape = (options.images, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    record = snapshot(model, 0)

    @torch.no_grad()
    def plainly() -> None:
        model(images)

    runs = {f"trainer's modules, one batch of {options.images}": plainly}
    refreshes: dict[str, list[float]] = {}
    for spec in options.engines:
        engine = build_engine(spec, model)
        engine.refresh(record)
        refreshes[spec] = [seconds(partial(engine.refresh, record), clock) for _ in range(5)]
        runs |= {f"{spec}, chunks of {chunk}": in_chunks(engine, images, chunk) for chunk in options.chunks}
    for run in runs.values():
        run()
    rounds = [{name: seconds(run, clock) for name, run in runs.items()} for _ in range(options.repetitions)]

    print(f"{options.model}, {options.size}x{options.size}, {options.images} images, {options.threads} thread(s)")
    print(f"{processor()}; torch {torch.__version__}")
    print(f"medians of {options.repetitions} interleaved repetitions, {options.clock} clock")
    baseline = next(iter(runs))
    for name in runs:
        rate = statistics.median(options.images / each[name] for each in rounds)
        ratio = statistics.median(each[baseline] / each[name] for each in rounds)
        print(f"{name:42} {rate:8.0f} images/s {ratio:6.2f} x")
    for spec, times in refreshes.items():
        print(f"{spec + ', refresh':42} {1000 * statistics.median(times):8.1f} ms")


if __name__ == "__main__":
    main()
