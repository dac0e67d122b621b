"""How much of what mining could gain an int8 oracle captures, at 10, 50 and 100 % of a training.

Trains the baseline and stops at each part of the training to score the same views with the weights of that moment in
float32 and with every engine: captured gain, share of samples for which the same view wins, rank correlation within
each sample's views, over --groups samples × γ views.

    taskset -c 0 python benchmarks/captured_gain.py --data FOLDER --epochs 20 --limit 5000
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infer2train.batches import split_batch
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.scores import loss
from infer2train.observe.runlog import cpu_name
from infer2train.oracle.engine import Engine
from infer2train.oracle.engines import build_engine
from infer2train.oracle.fidelity import fidelity
from infer2train.oracle.samples import SourceSamples
from infer2train.oracle.snapshot import Record, snapshot
from infer2train.training.config import from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.schedule import learning_rate
from infer2train.training.setup import Run, prepare, resolved
from infer2train.training.step import EpochSums, train_step

CHUNK = 32


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--limit", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--parts", nargs="+", type=float, default=[0.1, 0.5, 1.0], help="of the training")
    parser.add_argument("--groups", type=int, default=2000, help="samples that are scored")
    parser.add_argument("--gamma", type=int, default=10, help="views of each")
    parser.add_argument("--engines", nargs="+", default=["openvino:int8", "onnxruntime:int8", "openvino:b4"])
    parser.add_argument("--schemes", nargs="+", default=["default"])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def scores(run: Run, engine: Engine, groups: int, gamma: int) -> Tensor:
    """The losses of `gamma` views of each of `groups` samples, [groups, gamma]."""
    ids = np.repeat(np.arange(groups) % len(run.training_images), gamma)
    view_seeds = seeds(1, Purpose.VIEW, slot=ids, view=np.tile(np.arange(gamma), groups))
    found = []
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        images, targets = run.training_images.batch(Addresses(ids[part], view_seeds[part]))
        found.append(loss(engine.outputs(images), targets).clone())
    return torch.cat(found).view(groups, gamma)


def measure(run: Run, options: argparse.Namespace, engines: dict[tuple[str, str], Engine]) -> None:
    """One line for each engine with the weights of now."""
    record = snapshot(run.model, run.loader.steps)
    reference = build_engine("torch:fp32", run.model)
    reference.refresh(record)
    fresh = scores(run, reference, options.groups, options.gamma)
    for (spec, scheme), engine in engines.items():
        engine.refresh(engine.calibrated(Record(record.version, record.tensors)))
        found = fidelity(scores(run, engine, options.groups, options.gamma), fresh)
        print(
            f"  {spec} {scheme}: captured gain {found.captured_gain:.4f}, same view {found.same_view:.1%}, rank "
            f"correlation {found.rank_correlation:.3f}",
            flush=True,
        )


def main() -> None:
    """Train, and measure on the way."""
    options = arguments()
    settings = {"data": str(Path(options.data).resolve()), "model": options.model, "limit": options.limit}
    settings |= {"epochs": options.epochs, "lr_drops": [options.epochs * 9 // 10], "threads": options.threads}
    run = prepare(resolved(from_plain({**regime_defaults("cifar10-resnet44", "baseline"), **settings})))
    print(f"{cpu_name()}, {options.threads} thread(s), torch {torch.__version__}; {settings}")
    samples = SourceSamples(
        run.training_images, lambda: np.arange(len(run.training_images)), seed=run.config.seed, split=split_batch
    )
    engines = {
        (spec, scheme): build_engine(spec, run.model, samples=samples, scheme=scheme, rows=CHUNK)
        for spec in options.engines
        for scheme in options.schemes
    }
    marks = {max(1, round(part * options.epochs)) for part in options.parts}
    started = time.perf_counter()
    for epoch in range(1, options.epochs + 1):
        for images, targets in run.loader:
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(run.config, run.loader.steps, run.steps_per_epoch)
            train_step(run, images, targets, EpochSums())
        if epoch in marks:
            print(f"{epoch / options.epochs:.0%} of the training, {time.perf_counter() - started:.0f} s", flush=True)
            measure(run, options, engines)
    run.loader.close()


if __name__ == "__main__":
    main()
