"""What `mine()` with the baseline method costs over the loop of a host, Accelerate's or Ignite's or Fabric's.

ResNet-20 on images in memory, B = 64, no workers, one thread. Two loops train for real, side by side in one process:
the host's own, and the same one mined. Blocks of steps alternate, so that a busy machine slows both alike. The ratio is
the median of the pairs'; the bound is 1.02.

    taskset -c 0 python benchmarks/host_accelerate.py --host accelerate ignite fabric
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import infer2train
from infer2train.models.build import build_model
from infer2train.models.pixels import Pixels
from infer2train.observe.runlog import cpu_name
from infer2train.sources.views.crops import PadCropFlip

Steps = Iterator[None]
"""Asked for the next one, it trains one step."""


def accelerate(mined: bool, model: nn.Module, optimizer: Any, base: "DataLoader[Any]") -> Steps:
    """As Accelerate's documentation writes it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, base)
    if mined:
        loader = infer2train.mine(loader, model, optimizer, method="baseline")
    while True:
        for images, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(images), targets))
                optimizer.step()
                optimizer.zero_grad()
            yield


def fabric(mined: bool, model: nn.Module, optimizer: Any, base: "DataLoader[Any]") -> Steps:
    """As Fabric's documentation writes it."""
    from lightning.fabric import Fabric

    host = Fabric(accelerator="cpu", devices=1)
    model, optimizer = host.setup(model, optimizer)
    loader = host.setup_dataloaders(base)
    if mined:
        loader = infer2train.mine(loader, model, optimizer, method="baseline")
    while True:
        for images, targets in loader:
            host.backward(F.cross_entropy(model(images), targets))
            optimizer.step()
            optimizer.zero_grad()
            yield


def ignite(mined: bool, model: nn.Module, optimizer: Any, base: "DataLoader[Any]") -> Steps:
    """An engine, interrupted after each iteration and run on."""
    from ignite.engine import Engine, Events, create_supervised_trainer

    loader: Any = infer2train.mine(base, model, optimizer, method="baseline") if mined else base
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, Engine.interrupt)
    while True:
        trainer.run(loader, max_epochs=1_000_000)
        yield


HOSTS: dict[str, Callable[[bool, nn.Module, Any, "DataLoader[Any]"], Steps]] = {
    "accelerate": accelerate,
    "fabric": fabric,
    "ignite": ignite,
}


def begun(host: str, mined: bool, images: np.ndarray, targets: np.ndarray) -> Steps:
    """The steps of one loop, with a model, an optimiser and a loader of its own."""
    network = build_model("resnet20", num_classes=10, in_channels=3, seed=0)
    model = Pixels(network, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).to(memory_format=torch.channels_last)
    data = infer2train.ImageViews(images, targets, PadCropFlip())
    base: DataLoader[Any] = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    return HOSTS[host](mined, model, torch.optim.SGD(model.parameters(), lr=0.01), base)


def block(steps: Steps, number: int) -> float:
    """Seconds of so many training steps."""
    started = perf_counter()
    for _ in islice(steps, number):
        pass
    return perf_counter() - started


def main() -> None:
    """Measure the hosts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=[*HOSTS], nargs="+", default=["accelerate"])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (options.samples, 32, 32, 3), dtype=np.uint8)
    targets = generator.integers(0, 10, options.samples)
    for host in options.host:
        own, mined = (begun(host, is_mined, images, targets) for is_mined in (False, True))
        for steps in (own, mined):
            block(steps, options.steps)
        pairs = [(block(own, options.steps), block(mined, options.steps)) for _ in range(options.blocks)]
        alone, beside = (statistics.median(column) / options.steps for column in zip(*pairs, strict=True))
        ratio = statistics.median(with_mining / without for without, with_mining in pairs)
        print(f"{cpu_name()}; torch {torch.__version__}; ResNet-20, B = 64, {host}")
        print(f"its own loop {1000 * alone:.1f} ms/step, mine(method='baseline') {1000 * beside:.1f} ms/step")
        print(f"ratio {ratio:.3f} (median of {options.blocks} pairs; bound 1.02)")


if __name__ == "__main__":
    main()
