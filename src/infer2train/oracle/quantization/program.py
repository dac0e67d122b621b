"""The quantised program: S and Z for every site of a graph. One specification, from which every engine is lowered.

`Simulation` is what the specification means: the model in float32 with every site rounded to what its integers stand
for. Engines that run integers are compared with it at every refresh.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.batches import tensors_of
from infer2train.oracle.quantization.affine import Affine, affine_of_range, symmetric
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.schemes import Scheme, get_scheme

SMALLEST_CHANNEL = 2.0**-12
"""A channel's range is at least this part of its weight's: a dead channel's S would overflow the integer bias."""
INTEGER_BITS, BIAS_LIMIT = 8, 2**31 - 1
"""Where integers are computed with, biases have 32 bits; at other widths, which are simulated, they stay real."""


@dataclass(frozen=True)
class Program:
    """Weights and, for each site of their graph, how the tensor there is put into integers.

    Args:
        tensors: the graph's weights and buffers, folded, float32; biases of 8-bit layers at 32 bits (Jacob et al.,
            arXiv 1712.05877, section 2.4).
        affines: by number of the site.
    """

    tensors: tuple[Tensor, ...]
    affines: tuple[Affine, ...]


def specify(
    graph: WeightGraph,
    tensors: Sequence[Tensor],
    ranges: Mapping[str, Tensor],
    bits: int = 8,
    scheme: str = "default",
    weight_bits: int | None = None,
) -> Program:
    """The quantised program of weights with measured ranges.

    Args:
        graph: of the model.
        tensors: from `graph.tensors()`.
        ranges: of activations, from `measure_ranges`.
        bits: of weights and activations.
        scheme: an entry of `schemes.SCHEMES`.
        weight_bits: of weights, where they have fewer: some CPUs add products of 8 bits wrongly. Default: `bits`.

    Raises:
        ValueError: a range is missing or not finite, or the width or scheme unknown.
    """
    by_name = dict(zip(graph.names, tensors, strict=True))
    missing = [site.name for site in graph.sites if site.kind != "weight" and site.name not in ranges]
    if missing:
        raise ValueError(
            f"a record needs the range of every activation: got none of {', '.join(missing[:5])}; publish it through "
            "a pool, or call engine.calibrated(record)"
        )
    chosen = get_scheme(scheme)
    read = [site.name for site in graph.sites if site.kind != "weight"]
    measured = iter(_affines_of_ranges(torch.stack([ranges[name].float() for name in read]), bits) if read else ())
    affines = tuple(
        _affine_of_weight(by_name[site.name], weight_bits or bits, chosen) if site.kind == "weight" else next(measured)
        for site in graph.sites
    )
    rounded = by_name | (_rounded_biases(graph, by_name, affines) if bits == INTEGER_BITS else {})
    return Program(tuple(rounded[name] for name in graph.names), affines)


def _rounded_biases(graph: WeightGraph, tensors: Mapping[str, Tensor], affines: Sequence[Affine]) -> dict[str, Tensor]:
    """Biases as what integer arithmetic adds them as: whole multiples of S of the input times S of the weight."""
    readers = Counter(layer.bias for layer in graph.layers)
    found = {}
    for layer in graph.layers:
        if layer.bias is None or layer.sites is None or readers[layer.bias] > 1:
            continue  # one that is shared has several scales
        if layer.weight is None or not bool(tensors[layer.weight].any()):
            continue  # S of a tensor of zeros is 1, and says nothing of its bias
        data, weight = layer.sites
        scale = affines[data].scale.double() * affines[weight].scale.double()
        steps = (tensors[layer.bias].double() / scale).round().clamp(-BIAS_LIMIT, BIAS_LIMIT)
        found[layer.bias] = (steps * scale).float()
    return found


def _affines_of_ranges(ranges: Float[Tensor, "s 2"], bits: int) -> Iterator[Affine]:
    """One quantisation for each range, worked out together."""
    found = affine_of_range(ranges[:, 0], ranges[:, 1], bits)
    for scale, zero_point in zip(found.scale, found.zero_point, strict=True):
        yield Affine(scale, zero_point, found.low, found.high)


def _affine_of_weight(weight: Tensor, bits: int, scheme: Scheme) -> Affine:
    if not scheme.per_channel:
        return affine_of_range(weight.min(), weight.max(), bits)
    bound = weight.flatten(1).abs().amax(1)
    return symmetric(-bound, torch.maximum(bound, bound.max() * SMALLEST_CHANNEL), bits)


class Simulation:
    """What a quantised program means, in float32: the slow readable truth.

    Args:
        graph: of the model.
        program: its specification.
        clipped: numbers of sites whose tensor is only held to the range of its integers, not rounded: where an engine
            adds what a convolution gives before it rounds, it is more exact than the specification asks.
    """

    def __init__(self, graph: WeightGraph, program: Program, clipped: Collection[int] = ()) -> None:
        self._graph, self._program = graph, program
        by_name = dict(zip(graph.names, program.tensors, strict=True))
        self._acts: dict[int, Any] = {}
        for number, (site, affine) in enumerate(zip(graph.sites, program.affines, strict=True)):
            if site.kind == "weight":
                rounded = affine.fake(by_name[site.name])
                self._acts[number] = lambda x, rounded=rounded: rounded
            else:
                self._acts[number] = affine.clip if number in clipped else affine.fake

    def __call__(self, inputs: Any) -> list[Tensor]:
        """The tensors of the model's outputs, in order."""
        return tensors_of(self._graph.run(self._program.tensors, inputs, self._acts))


def deviation(got: Sequence[Tensor], expected: Sequence[Tensor], bits: int = 8) -> float:
    """The greatest difference between two runs' outputs, in output quantisation steps; NaN counts as infinite.

    A step of an output is its expected range, widened to hold 0, divided by 2^bits − 1. Columns that say the same of
    every row (masked logits) count for no step but their own, and what is expected not to be finite must be the same.

    Example:
        >>> deviation([torch.tensor([0.0, 252.0])], [torch.tensor([0.0, 255.0])])
        3.0
    """
    steps = [0.0]
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape, (g.shape, e.shape)
        finite = e.isfinite()
        if not e.is_floating_point() or not torch.allclose(g[~finite], e[~finite], equal_nan=True):
            steps.append(0.0 if torch.equal(g, e) else torch.inf)
            continue
        found = ((g - e).abs() / _steps(e.where(finite, 0.0), bits)).where(finite, 0.0)
        steps.append(float(found.nan_to_num(nan=torch.inf, posinf=torch.inf).max()))
    return max(steps)


def _steps(expected: Float[Tensor, "..."], bits: int) -> Tensor:
    """The step of each column of a finite output."""
    has_rows = expected.ndim > 0 and len(expected) > 1
    low, high = (expected.amin(0), expected.amax(0)) if has_rows else (expected, expected)
    varies = low < high
    told = varies if bool(varies.any()) else torch.ones_like(varies)  # rows that are all the same tell nothing
    step = affine_of_range(low[told].min(), high[told].max(), bits).scale
    return torch.where(told, step, torch.maximum(step, low.abs() / (2**bits - 1)))
