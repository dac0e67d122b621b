"""What mining under Lightning with the baseline method costs over Lightning's own loop.

One process, one thread: `fit` with the callback and `fit` without it alternate, each over the same number of steps, so
that a busy machine slows both alike; what comes before the third step of a fit (workers, the first publication, the
making of the loader) is left out. ResNet-20, B = 64, images in memory. Two ratios, each a median over pairs: of the
clock on the wall, and of this process's own time, which others on the same core do not lengthen. The bound is 1.02.

    taskset -c 0 python benchmarks/host_lightning.py
"""

import argparse
import logging
import warnings
from time import perf_counter, process_time
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import infer2train
from infer2train.integrations.lightning import Mining
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.sources.views.crops import PadCropFlip

FIRST = 2
"""Steps of a fit that are not timed."""


class Classifier(L.LightningModule):
    """ResNet-20 on bytes."""

    def __init__(self) -> None:
        super().__init__()
        network = build_model("resnet20", num_classes=10, in_channels=3, seed=0)
        self.network = Pixels(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(L.Callback):
    """When each step of a fit has ended."""

    def __init__(self) -> None:
        self.ends: list[np.ndarray] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """After a step."""
        self.ends.append(np.array([perf_counter(), process_time()]))


def seconds_per_step(module: Classifier, base: Any, steps: int, *own: Any) -> np.ndarray:
    """Of one fit: on the wall, and of the process."""
    clock = Clock()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=FIRST + steps, accelerator="cpu", callbacks=[*own, clock], **quiet
    )
    trainer.fit(module, base)
    return (clock.ends[-1] - clock.ends[FIRST - 1]) / steps


def main() -> None:
    """Measure pairs of fits, and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=20, help="timed steps in a fit")
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (options.samples, 32, 32, 3), dtype=np.uint8)
    targets = generator.integers(0, 10, options.samples)
    base: DataLoader[Any] = DataLoader(
        infer2train.ImageViews(images, targets, PadCropFlip()), batch_size=64, shuffle=True, drop_last=True
    )
    module = Classifier()
    pairs = [
        (
            seconds_per_step(module, base, options.steps),
            seconds_per_step(module, base, options.steps, Mining(method="baseline")),
        )
        for _ in range(1 + options.pairs)
    ][1:]
    own, mined = (np.array(column) for column in zip(*pairs, strict=True))
    print(f"{cpu_name()}; torch {torch.__version__}; lightning {L.__version__}; ResNet-20, B = 64")
    print(f"medians of {options.pairs} pairs of {options.steps} steps")
    for place, clock in enumerate(("wall", "process")):
        alone, beside = 1000 * np.median(own[:, place]), 1000 * np.median(mined[:, place])
        ratio = np.median(mined[:, place] / own[:, place])
        print(f"{clock}: Lightning {alone:.1f} ms/step, Mining(method='baseline') {beside:.1f}; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
