"""What `mine()` with the baseline method costs over the user's bare DataLoader.

Two cases: images in memory (`ImageViews`, ResNet-20, B = 64, no workers), and a data set that decodes and augments in
`__getitem__`, read by two worker processes under `Replay`. Both loops train for real; blocks of steps with and without
`mine()` alternate, so that a busy machine slows both alike. The ratio is of medians of the blocks; the bound is 1.03.

    taskset -c 0 python benchmarks/mine_overhead.py --case memory
    python benchmarks/mine_overhead.py --case replay
"""

import argparse
import io
import random
import statistics
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import infer2train
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.sources.views.crops import PadCropFlip


class Decoding(Dataset[tuple[Tensor, int]]):
    """Images as compressed files in memory; decoded, cropped and flipped when they are read."""

    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self._files = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            self._files.append(file.getvalue())
        self._targets = targets

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = np.asarray(Image.open(io.BytesIO(self._files[index])))
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        top, left = random.randint(0, 8), np.random.randint(0, 9)
        cropped = padded[top : top + 32, left : left + 32]
        tensor = torch.from_numpy(np.ascontiguousarray(cropped)).permute(2, 0, 1)
        return (tensor.flip(2) if torch.rand(()) < 0.5 else tensor), int(self._targets[index])


def endless(loader: Any) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def block(batches: Iterator[Any], steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of so many training steps."""
    started = perf_counter()
    for images, targets in islice(batches, steps):
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return perf_counter() - started


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["memory", "replay"], nargs="+", default=["memory", "replay"])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in options.case:
        measure(case, options)


def measure(case: str, options: argparse.Namespace) -> None:
    """Measure one case and print its ratio."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (options.samples, 32, 32, 3), dtype=np.uint8)
    targets = generator.integers(0, 10, options.samples)
    network = build_model("resnet20", num_classes=10, in_channels=3, seed=0)
    model = Pixels(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    in_memory = case == "memory"
    data: Dataset[Any] = (
        infer2train.ImageViews(images, targets, PadCropFlip()) if in_memory else Decoding(images, targets)
    )
    base: DataLoader[Any] = DataLoader(
        data, batch_size=64, shuffle=True, drop_last=True, num_workers=0 if in_memory else 2
    )
    bare, mined = endless(base), endless(infer2train.mine(base, model, optimizer, method="baseline"))
    for batches in (bare, mined):
        block(batches, options.steps, model, optimizer)
    pairs = [
        (block(bare, options.steps, model, optimizer), block(mined, options.steps, model, optimizer))
        for _ in range(options.blocks)
    ]
    alone, beside = (statistics.median(column) / options.steps for column in zip(*pairs, strict=True))
    ratio = statistics.median(mined_time / bare_time for bare_time, mined_time in pairs)
    print(f"{cpu_name()}; torch {torch.__version__}; ResNet-20, B = 64, {case}")
    print(f"bare DataLoader {1000 * alone:.1f} ms/step, mine(method='baseline') {1000 * beside:.1f} ms/step")
    print(f"ratio {ratio:.3f} (median of {options.blocks} pairs; bound 1.03)")


if __name__ == "__main__":
    main()
