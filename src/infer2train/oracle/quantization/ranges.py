"""Ranges of activations: per-sample extremes, averaged over the calibration samples, and wider where tails are long.

A pure function of weights and calibration inputs, so every process that has them measures the same, bit for bit on the
same machine. They are measured once for each version and become part of its record.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.batches import batch_size
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.sites import Site


def measure_ranges(
    graph: WeightGraph, tensors: Sequence[Tensor], inputs: Any, percentile: float | None = None, tails: float = 0.0
) -> dict[str, Float[Tensor, " 2"]]:
    """T_min and T_max of every activation site.

    Args:
        graph: of the model.
        tensors: its weights, from `graph.tensors()`.
        inputs: calibration samples.
        percentile: cut off, in each sample, what lies above this percentile or below its complement (50 to 100).
            Default: nothing, so the extremes themselves.
        tails: widen each range by so many standard deviations of the samples' extremes, at most to the widest of them.

    Returns:
        Site name -> (T_min, T_max): of each sample, then the mean over samples.

    Source: paper, section 4 ("an average value of T_min and T_max across multiple samples").
    """
    ranges: dict[str, Tensor] = {}
    samples = batch_size(inputs)

    def watch(site: Site) -> Any:
        def measure(seen: Tensor) -> Tensor:
            # Samples whose rows were flattened into one dimension are told apart again.
            apart, together = site.flattened or (1, 1)
            x = seen if site.flattened is None else torch.unflatten(seen, 0, (apart, samples, together))
            dim = site.batch_dim
            if dim is None:  # without samples: as of one
                x, dim = seen[None], 0
            others = tuple(d for d in range(x.ndim) if d != dim)
            if percentile is None:
                low, high = (x.amin(others), x.amax(others)) if others else (x, x)
            else:
                rows = x.movedim(dim, 0).flatten(1).float()
                low, high = -_percentile(-rows, percentile), _percentile(rows, percentile)
            ranges[site.name] = torch.stack([-_typical(-low.float(), tails), _typical(high.float(), tails)])
            return seen

        return measure

    acts = {number: watch(site) for number, site in enumerate(graph.sites) if site.kind != "weight"}
    graph.run(tensors, inputs, acts)
    return ranges


def _typical(greatest: Float[Tensor, " n"], tails: float) -> Float[Tensor, ""]:
    """The mean of the samples' greatest numbers, or what lies so many deviations above it."""
    if not tails:
        return greatest.mean()
    return (greatest.mean() + tails * greatest.std(correction=0)).clamp(max=greatest.max())


def _percentile(rows: Float[Tensor, "n m"], percentile: float) -> Float[Tensor, " n"]:
    """The nearest-rank percentile of each row; `torch.quantile` refuses rows as long as a feature map."""
    rank = max(1, math.ceil(round(percentile * rows.shape[1] / 100, 9)))  # 99.9 % of 1,000 are 999, in floats too
    return rows.kthvalue(rank, dim=1).values
