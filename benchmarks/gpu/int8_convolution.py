"""Would an int8 engine on CUDA pay? Times a Triton int8 convolution against bf16 through cuDNN, layer by layer.

Typical layers of ResNet-44 (640 images of 32×32) and ResNet-50, each with bias, ReLU, residual and requantisation in
one kernel (int8conv/kernel.py), channels last. Each is first compared with the project's quantisation
(int8conv/arithmetic.py, which a test holds to the engine simulated:b8): the same integers to within one step. Then it
is timed against bf16 convolution + bias, addition and ReLU, in eager and inside a CUDA graph, and against cuDNN's own
fusion of the three. The verdict compares int8 with the fastest bf16, both inside CUDA graphs, over ResNet-44's layers,
each as often as it has them.

    PYTHONPATH=src python3 benchmarks/gpu/int8_convolution.py --json int8.json
    PYTHONPATH=src python3 benchmarks/gpu/int8_convolution.py --roofline H100      # no device needed
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from int8conv.clock import copy_bandwidth, eager_seconds, graph_seconds
from int8conv.layers import CARDS, Card, Layer, resnet44, resnet50
from int8conv.problem import Inputs, Problem, random_problem
from int8conv.table import roofline, table, totals, verdict

POISONS = (85, -86)
BF16_LIMIT = 0.1
"""How far int8 and bf16 results may lie apart, relative: more, and they are not the same layer."""

Bf16 = Callable[[Tensor, Tensor | None], Tensor]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("resnet44", "resnet50"), default=["resnet44", "resnet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 640], help="of ResNet-50")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything there too")
    parser.add_argument("--roofline", choices=CARDS, help="only what each layer needs at least, on that card")
    return parser.parse_args()


def layers_of(options: argparse.Namespace) -> list[Layer]:
    """The layers that are asked for."""
    found = resnet44() if "resnet44" in options.networks else []
    return found + [layer for batch in options.batches for layer in resnet50(batch) if "resnet50" in options.networks]


def bf16_layers(problem: Problem) -> dict[str, Bf16]:
    """Ways to do the layer in bf16, channels last: three operations, and cuDNN's one."""
    layer = problem.layer
    weight = problem.weight.bfloat16().contiguous(memory_format=torch.channels_last)
    bias = problem.bias.bfloat16()
    stride, padding = [layer.stride] * 2, [layer.padding] * 2

    def plain(x: Tensor, residual: Tensor | None) -> Tensor:
        y = F.conv2d(x, weight, bias, layer.stride, layer.padding)
        y = y if residual is None else y.add_(residual)
        return y.relu_() if layer.relu else y

    def fused(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, [1, 1], 1)
        return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, stride, padding, [1, 1], 1)

    if not layer.relu:
        return {"plain": plain}
    try:
        fused(problem.inputs[0].real_x, problem.inputs[0].real_residual)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # cuDNN fuses what it has a kernel for
        print(f"  cuDNN does not fuse {layer.name} in bf16: {str(error).splitlines()[0][:90]}", flush=True)
        return {"plain": plain}
    return {"plain": plain, "fused": fused}


def checked(problem: Problem, configuration: Any, ways: dict[str, Bf16]) -> dict[str, Any]:
    """How the kernel's integers differ from what they must be. Every output is poisoned first, in two ways."""
    from int8conv.kernel import convolve

    inputs, results = problem.inputs[0], []
    for poison in POISONS:
        inputs.y.fill_(poison)
        convolve(inputs.x, problem.prepared, inputs.residual, inputs.y, configuration)
        results.append(inputs.y.clone())
    # Few images, once: no search for cuDNN's fastest algorithm.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        images, expected = problem.expected(inputs)
        residual = None if inputs.real_residual is None else inputs.real_residual[images]
        bf16 = {name: run(inputs.real_x[images], residual).float() for name, run in ways.items()}
    steps = (results[0][images].int() - expected.int()).abs()
    real = problem.sites.output.dequantize(expected.int()).permute(0, 3, 1, 2)
    return {
        "max_steps": int(steps.max()),
        "allowed_steps": problem.sites.steps(),
        "exact": float((steps == 0).double().mean()),
        "all_written": torch.equal(*results),
        "from_bf16": {name: float((result - real).norm() / real.norm()) for name, result in bf16.items()},
    }


def is_right(check: dict[str, Any]) -> bool:
    """Whether a check found what must be."""
    return bool(
        check["max_steps"] <= check["allowed_steps"]
        and check["all_written"]
        and check["from_bf16"]["plain"] < BF16_LIMIT
    )


def fastest(problem: Problem) -> Any:
    """The configuration that is fastest for the layer inside a CUDA graph."""
    from triton.runtime.errors import OutOfResources

    from int8conv.kernel import configurations

    found: list[tuple[float, Any]] = []
    for configuration in configurations(problem.layer.outputs, problem.layer.window**2 * problem.layer.channels):
        try:
            found.append((graph_seconds(int8_calls(problem, configuration)), configuration))
        except OutOfResources:  # this card has less shared memory than it takes
            continue
        except Exception as error:  # Triton's errors have no base but this; the others may do
            print(f"  {problem.layer.name}, {vars(configuration)}: {str(error).splitlines()[0][:90]}", flush=True)
    if not found:
        raise RuntimeError(f"no configuration of the kernel runs for {problem.layer.name}")
    return min(found, key=lambda pair: pair[0])[1]


def int8_calls(problem: Problem, configuration: Any) -> list[Callable[[], object]]:
    """A call of the kernel for each set of inputs."""
    from int8conv.kernel import convolve

    def call(inputs: Inputs) -> None:
        convolve(inputs.x, problem.prepared, inputs.residual, inputs.y, configuration)

    return [partial(call, inputs) for inputs in problem.inputs]


def measured(layer: Layer, card: Card, seed: int) -> dict[str, Any]:
    """One layer's check and times, in seconds."""
    properties = torch.cuda.get_device_properties(0)
    problem = random_problem(layer, torch.device("cuda"), properties.L2_cache_size, seed)
    configuration, ways = fastest(problem), bf16_layers(problem)
    check = checked(problem, configuration, ways)
    # Timed again, beside bf16: the fastest of many measurements has had luck.
    calls = int8_calls(problem, configuration)
    times = {"int8_eager": eager_seconds(calls), "int8_graph": graph_seconds(calls)}
    for name, run in ways.items():
        error = check["from_bf16"][name]
        if name != "plain" and not error < BF16_LIMIT:  # not a number either
            print(
                f"  {layer.name}: {name} bf16 gives something else, relative {error:.2g}, and is left out", flush=True
            )
            continue
        calls = [partial(run, inputs.real_x, inputs.real_residual) for inputs in problem.inputs]
        times |= {f"bf16_{name}_eager": eager_seconds(calls), f"bf16_{name}_graph": graph_seconds(calls)}
    times["bf16_best_graph"] = min(seconds for name, seconds in times.items() if "bf16" in name and "graph" in name)
    floors = {f"{precision}_floor": card.floor_seconds(layer, precision) for precision in ("int8", "bf16")}
    names = {"layer": layer.name, "network": layer.network, "count": layer.count, "num_sets": len(problem.inputs)}
    return names | {"configuration": vars(configuration), "right": is_right(check)} | check | times | floors


def main() -> int:
    """Measure what is asked for; 1 where the kernel is wrong."""
    options = arguments()
    layers = layers_of(options)
    if options.roofline:
        print("\n".join(roofline(layers, CARDS[options.roofline])))
        return 0
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        lacks = "Triton" if torch.cuda.is_available() else "a CUDA device"
        print(
            f"int8_convolution: nothing measured, for it needs {lacks}; --roofline H100 prints the floors without one"
        )
        return 0
    import triton

    torch.backends.cudnn.benchmark = True  # its fastest algorithm for each layer
    name, bandwidth = torch.cuda.get_device_name(0), copy_bandwidth()
    unknown = Card(bandwidth, float("inf"), float("inf"))
    card = next((card for part, card in CARDS.items() if part in name), unknown)
    versions = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, Triton {triton.__version__}"
    print(f"{name}, {versions}; a copy moves {bandwidth / 1e12:.2f} TB/s, floors are for {card.bandwidth / 1e12:.2f}")
    rows: list[dict[str, Any]] = []
    for layer in layers:
        rows.append(measured(layer, card, options.seed))
        print(table(rows[-1:])[1], flush=True)
        if options.json:  # after each layer, so that a run that is stopped leaves what it has
            facts = {"card": name, "versions": versions, "copy_bandwidth": bandwidth, "layers": rows}
            facts |= {"sums": totals(rows), "verdict": verdict(rows), "of_layers": len(layers)}
            options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        torch.cuda.empty_cache()
    print("\n".join([*table(rows), verdict(rows)]))
    return 0 if all(found["right"] for found in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
