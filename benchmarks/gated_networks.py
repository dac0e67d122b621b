"""Int8 oracles of networks without ReLU where it matters: MobileNetV3-small and EfficientNet-B0, early in a training.

Trains on random crops and flips, stops after each of --steps, and scores the same views with the weights of then in
float32 and with each engine: captured gain, and the share of multiply-adds that the engine makes in integers. Then, in
the simulated 8-bit program, what leaving layers in float32 would give: those that are most at fault for their cost, up
to so many of the multiply-adds, found by quantising one layer at a time, with the weights of then or the first.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/gated_networks.py --data FOLDER
"""

import argparse
import copy
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.batches import split_batch
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.scores import loss
from infer2train.observe.runlog import cpu_name
from infer2train.oracle.engine import Engine
from infer2train.oracle.engines import build_engine
from infer2train.oracle.fidelity import Fidelity, fidelity
from infer2train.oracle.quantization.fold import fold_plan, folded_tensors
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.program import Simulation, specify
from infer2train.oracle.quantization.ranges import measure_ranges
from infer2train.oracle.quantization.schemes import LONG_TAILS
from infer2train.oracle.samples import SourceSamples
from infer2train.oracle.snapshot import parameters_and_buffers, snapshot
from infer2train.sources.source import Source
from infer2train.training.config import from_plain
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import prepare, resolved

Activation = type[nn.Module]
BATCH, VIEWS, CHUNK, CALIBRATION = 64, 8, 32, 64


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al., arXiv 1709.01507)."""

    def __init__(self, width: int, squeezed: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.excite(self.activation(self.squeeze(F.adaptive_avg_pool2d(x, 1))))) * x


class Inverted(nn.Module):
    """Wide in the middle, where each channel is convolved alone."""

    def __init__(self, layers: Sequence[nn.Module], is_residual: bool) -> None:
        super().__init__()
        self.layers, self.is_residual = nn.Sequential(*layers), is_residual

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.is_residual else self.layers(x)


def normed(
    c_in: int, c_out: int, size: int, activation: Activation | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch-norm, activation."""
    conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), *([activation()] if activation else []))


def mobilenet_v3_small(num_classes: int = 10) -> nn.Module:
    """As in arXiv 1905.02244, table 2; the first convolution has stride 1, for images of 32 pixels."""
    relu, hard = nn.ReLU, nn.Hardswish
    rows: list[tuple[int, int, int, int, bool, Activation, int]] = [
        *[(16, 3, 16, 16, True, relu, 2), (16, 3, 72, 24, False, relu, 2), (24, 3, 88, 24, False, relu, 1)],
        *[(24, 5, 96, 40, True, hard, 2), (40, 5, 240, 40, True, hard, 1), (40, 5, 240, 40, True, hard, 1)],
        *[(40, 5, 120, 48, True, hard, 1), (48, 5, 144, 48, True, hard, 1), (48, 5, 288, 96, True, hard, 2)],
        *[(96, 5, 576, 96, True, hard, 1), (96, 5, 576, 96, True, hard, 1)],
    ]
    blocks = []
    for c_in, size, width, c_out, is_gated, activation, stride in rows:
        layers: list[nn.Module] = [normed(c_in, width, 1, activation)] if width != c_in else []
        layers.append(normed(width, width, size, activation, stride, groups=width))
        if is_gated:
            layers.append(Gate(width, max(8, (width // 4 + 4) // 8 * 8), nn.ReLU(), nn.Hardsigmoid()))
        blocks.append(Inverted([*layers, normed(width, c_out, 1, None)], stride == 1 and c_in == c_out))
    head = [nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, num_classes)]
    pooled = [normed(96, 576, 1, hard), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(normed(3, 16, 3, hard), *blocks, *pooled, *head)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps, layer.momentum = 1e-3, 0.01  # as in TensorFlow, and so in torchvision
    return model


def efficientnet_b0(num_classes: int = 10) -> nn.Module:
    """As in arXiv 1905.11946, table 1; the first convolution has stride 1, for images of 32 pixels."""
    stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3)]
    stages += [(6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1)]
    blocks = []
    for expansion, size, first_stride, first_in, c_out, repeats in stages:
        for number in range(repeats):
            c_in, stride = (c_out, 1) if number else (first_in, first_stride)
            width = c_in * expansion
            layers: list[nn.Module] = [normed(c_in, width, 1, nn.SiLU)] if expansion > 1 else []
            layers.append(normed(width, width, size, nn.SiLU, stride, groups=width))
            layers += [Gate(width, c_in // 4, nn.SiLU(), nn.Sigmoid()), normed(width, c_out, 1, None)]
            blocks.append(Inverted(layers, stride == 1 and c_in == c_out))
    pooled = [normed(320, 1280, 1, nn.SiLU), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(normed(3, 32, 3, nn.SiLU), *blocks, *pooled, nn.Dropout(0.2), nn.Linear(1280, num_classes))


NETWORKS = {"mobilenet_v3_small": (mobilenet_v3_small, 0.1), "efficientnet_b0": (efficientnet_b0, 0.05)}
"""With the learning rate of SGD with momentum."""


def initialised(model: nn.Module) -> nn.Module:
    """Weights as the papers' reference code draws them."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


def views(images: Source, ids: np.ndarray, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """So many views of each image, in its order."""
    each = np.repeat(ids, count)
    view_seeds = seeds(seed, Purpose.VIEW, slot=np.arange(len(each)), view=np.tile(np.arange(count), len(ids)))
    x, y = images.batch(Addresses(each, view_seeds))
    return (x.float() / 255 - 0.45) / 0.24, y


class Normalised(SourceSamples):
    """Views as numbers around 0."""

    def calibration(self, version: int, rows: int) -> Tensor:
        return (super().calibration(version, rows).float() / 255 - 0.45) / 0.24  # type: ignore[no-any-return]

    def probe(self, rows: int) -> tuple[Tensor, Tensor]:
        x, y = super().probe(rows)
        return (x.float() / 255 - 0.45) / 0.24, y


def compared(outputs: Tensor, reference: Tensor, targets: Tensor) -> Fidelity:
    """How well views of the same image are told apart."""
    return fidelity(loss(outputs, targets).view(-1, VIEWS), loss(reference, targets).view(-1, VIEWS))


def with_engine(engine: Engine, model: nn.Module, x: Tensor, y: Tensor) -> str:
    """One line: an engine with the weights of now."""
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    outputs, reference = (
        torch.cat([run(part).clone() for part in x.split(CHUNK)]) for run in (engine.outputs, engine.reference)
    )
    found = compared(outputs, reference, y)
    fallbacks = int(engine.totals().get("refresh_failures", 0))
    return (
        f"captured gain {found.captured_gain:.3f}, same view {found.same_view:.1%}, rank correlation "
        f"{found.rank_correlation:.3f}, scored in fp32 so far: {fallbacks} versions"
    )


class Sensitivity:
    """The simulated 8-bit program of a model's weights, with layers left in float32."""

    def __init__(self, graph: WeightGraph, tensors: Sequence[Tensor], calibration: Tensor) -> None:
        self.graph = graph
        ranges = measure_ranges(graph, tensors, calibration, tails=LONG_TAILS)
        self.program = specify(graph, tensors, ranges)
        self.acts = Simulation(graph, self.program)._acts
        self.total = sum(layer.multiply_adds for layer in graph.layers) + graph.other_products

    def outputs(self, x: Tensor, real: Collection[int] = ()) -> Tensor:
        """With the layers of those numbers in float32."""
        rounded = [layer for number, layer in enumerate(self.graph.layers) if number not in real and layer.sites]
        sites = {site for layer in rounded for site in layer.sites or ()}
        weights = {layer.weight for layer in rounded}
        for number, site in enumerate(self.graph.sites):
            if site.kind == "output" and site.name.split("/")[0] in weights:
                sites.add(number)
        acts = {number: act for number, act in self.acts.items() if number in sites}
        parts = x.split(CHUNK)
        return torch.cat([self.graph.run(self.program.tensors, part, acts) for part in parts])

    def at_fault(self, x: Tensor, reference: Tensor) -> list[int]:
        """Layers by how much each alone moves views of one image against each other, for its multiply-adds."""
        everything = set(range(len(self.graph.layers)))

        def within(outputs: Tensor) -> Tensor:
            each = outputs.view(-1, VIEWS, outputs.shape[-1])
            return each - each.mean(1, keepdim=True)

        def error_for_cost(layer: int) -> float:
            error = (within(self.outputs(x, everything - {layer})) - within(reference)).square().sum()
            return float(error) / (self.graph.layers[layer].multiply_adds + 0.001 * self.total)

        return sorted(everything, key=error_for_cost, reverse=True)

    def leaving(self, budget: float, order: Sequence[int]) -> list[int]:
        """The first in that order whose multiply-adds keep within a part of all."""
        left, taken = budget * self.total, []
        for number in order:
            if self.graph.layers[number].multiply_adds <= left:
                left -= self.graph.layers[number].multiply_adds
                taken.append(number)
        return taken


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--engines", nargs="*", default=["openvino:int8", "onnxruntime:int8"])
    parser.add_argument("--steps", nargs="+", type=int, default=[60, 200])
    parser.add_argument("--left-out", nargs="*", type=float, default=[0.0, 0.02, 0.05, 0.1], help="of multiply-adds")
    parser.add_argument("--groups", type=int, default=128, help="samples that are scored")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def study(name: str, images: Source, options: argparse.Namespace) -> None:
    """One network: train, stop, measure."""
    torch.manual_seed(options.seed)
    build, rate = NETWORKS[name]
    model = initialised(build())
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    samples = Normalised(images, lambda: np.arange(8000), seed=options.seed, split=split_batch)
    engines = {}
    for spec in options.engines:
        started = time.perf_counter()
        engine = engines[spec] = build_engine(spec, copy.deepcopy(model).eval(), samples=samples, rows=CHUNK)
        print(f"{name}, {time.perf_counter() - started:.0f} s: {engine.trial.note(spec)}", flush=True)
    skeleton, pairs = fold_plan(model)
    graph = WeightGraph(skeleton, samples.calibration(0, CHUNK)) if options.left_out else None
    x, y = views(images, np.arange(8000, 8000 + options.groups), VIEWS, seed=options.seed + 1)
    probe = x[: 8 * VIEWS]
    first: list[int] = []
    rng = np.random.default_rng(options.seed)
    for step in range(max(options.steps) + 1):
        now = copy.deepcopy(model).eval()
        if graph is not None and step in (0, *options.steps):
            tensors = graph.tensors(folded_tensors(pairs, parameters_and_buffers(now)))
            sensitivity = Sensitivity(graph, tensors, samples.calibration(step, CALIBRATION))
            order = sensitivity.at_fault(probe, graph.run(tensors, probe))
            first = first or order
            reference = torch.cat([graph.run(tensors, part) for part in x.split(CHUNK)])
            for label, found_by in (("its own", order), ("the first", first))[: 2 if step else 0]:
                for budget in options.left_out:
                    real = sensitivity.leaving(budget, found_by) if budget else []
                    found = compared(sensitivity.outputs(x, real), reference, y)
                    print(
                        f"{name}, {step} steps, simulated, {len(real)} of {len(order)} layers in fp32 (up to "
                        f"{budget:.0%} of the multiply-adds, by {label} weights): captured gain "
                        f"{found.captured_gain:.3f}, rank correlation {found.rank_correlation:.3f}",
                        flush=True,
                    )
        if step in options.steps:
            for spec, engine in engines.items():
                print(f"{name}, {step} steps, {spec}: {with_engine(engine, now, x, y)}", flush=True)
        inputs, targets = views(images, rng.integers(8000, size=BATCH), 1, seed=options.seed + 1001 + step)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def main() -> None:
    """Each network."""
    options = arguments()
    data = {"data": str(Path(options.data).resolve()), "model": "resnet20", "epochs": 1}
    run = prepare(resolved(from_plain({**regime_defaults("cifar10-resnet44", "baseline"), **data})))
    print(f"{cpu_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for name in options.networks:
        study(name, run.training_images, options)
    run.loader.close()


if __name__ == "__main__":
    main()
