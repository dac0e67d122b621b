"""Whether a compiled program does what its specification says, and ranks as float32 does.

At every refresh the new program is compared on a probe with the simulation of the same record, and its order of a
sample's views with that of float32, before it is used. Once, visibly different weights must change what it says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from infer2train.batches import batch_size, take_rows, tensors_of
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.quantization.program import Program, Simulation, deviation
from infer2train.oracle.samples import PROBE_VIEWS
from infer2train.oracle.snapshot import NotFiniteError
from infer2train.oracle.trial import is_visible, rank_correlation

LIMITS = {"int8": 4.0, "fp32": 0.5, "bf16": 24.0}
"""Greatest deviation from the simulation that a refresh accepts, in output quantisation steps. Sound int8 programs stay
about 2, since they differ only in which way a tie is rounded; stale or misplaced weights are tens of steps away. bf16
has 8 significant bits in every operation."""
PROBE_ROWS = 4
"""Rows on which a new program is compared with its simulation."""
RANKED_ROWS = PROBE_VIEWS
"""Rows on which it is compared with float32: a sample's views, or those of two where tails are long."""
LEAST_RANK_CORRELATION = 0.5
"""Between the order of views that integers give and that of float32; below it a version is not worth its picks."""
RANKED_BITS = 8
"""Fewer are studies of how badly an oracle may rank, and are let do so."""
CHAOS = 0.5
"""Part of the simulation's own deviation from float32 that a program may deviate from it, where that is more: what is
rounded to another neighbour in one of eighty layers is as far off at the end as all that rounding is."""
CANARY = 1.1
"""What the weights of the canary are multiplied by: outputs of one layer change by 25 steps, of 200 do not overflow."""


@dataclass(frozen=True)
class Finding:
    """How far off a program is.

    Args:
        deviation: from its simulation, output quantisation steps.
        rank_correlation: with float32.
        limit: deviation that is allowed.
    """

    deviation: float
    rank_correlation: float
    limit: float

    @property
    def has_passed(self) -> bool:
        """Whether both are as they should be."""
        return self.deviation <= self.limit and self.rank_correlation >= LEAST_RANK_CORRELATION

    def reason(self, version: int) -> str:
        """Why it has not, in words."""
        if self.deviation > self.limit:
            return (
                f"deviates by {self.deviation:.3g} output quantisation steps from its simulation at version {version}, "
                f"{self.limit:g} are allowed"
            )
        return (
            f"orders the views of a sample unlike float32 at version {version}: rank correlation "
            f"{self.rank_correlation:.2f}, {LEAST_RANK_CORRELATION:g} is the least allowed"
        )


class Verifier:
    """Compares the programs of one graph with what they should say of a probe.

    Args:
        name: of the engine, for what it refuses.
        graph: of the model.
        probe: inputs, a sample's views in a row.
        others: inputs of other sizes, on which programs are compared with their simulation alone.
        fixed_rows: of a graph that takes no other number of rows.
        bits: of weights and activations; None in floating point.
        limit: deviation that is allowed, in output quantisation steps.
    """

    def __init__(
        self,
        name: str,
        graph: WeightGraph,
        probe: Any,
        fixed_rows: int | None,
        bits: int | None,
        limit: float,
        others: Sequence[Any] = (),
    ) -> None:
        self._name, self._graph, self._limit = name, graph, limit
        self.probes = (probe, *others)
        self._few = (probe if fixed_rows else take_rows(probe, PROBE_ROWS), *others)
        self._bits = bits or 8
        self._is_ranked = bits is not None and bits >= RANKED_BITS
        self._has_seen_weights = False
        self.clipped: frozenset[int] = frozenset()
        """Sites at which programs are more exact than they must be, see `Simulation`."""

    def check(
        self,
        outputs: Sequence[Sequence[Tensor]],
        tensors: Sequence[Tensor],
        program: Program | None,
        may_clip: frozenset[int],
    ) -> Finding:
        """What a program says of the probes against its simulation and float32.

        Args:
            outputs: of the program on `probes`, flat.
            tensors: the graph's weights, float32.
            program: the specification that was compiled; None in floating point.
            may_clip: sites at which it might be more exact, as far as its engine knows; what it does is found here.

        Raises:
            ValueError: the outputs have other shapes than the model's.
        """
        got = [_of_rows(each, batch_size(few)) for each, few in zip(outputs, self._few, strict=True)]
        expected = self._meant(tensors, program, self.clipped)
        self._check_shapes(got, expected)
        found = _deviations(got, expected, self._bits)
        if program is not None and may_clip != self.clipped and max(found) > 0:
            other = _deviations(got, self._meant(tensors, program, may_clip), self._bits)
            if max(other) < max(found):
                self.clipped, found = may_clip, other
        if not is_visible(got[0]) and not is_visible(expected[0]):
            return Finding(0.0, 1.0, self._limit)
        if program is None or not self._is_ranked:
            return Finding(max(found), 1.0, self._limit)
        real = [tensors_of(self._graph.run(tensors, probe)) for probe in self.probes]
        few = [_of_rows(each, batch_size(inputs)) for each, inputs in zip(real, self._few, strict=True)]
        limits = [
            max(self._limit, CHAOS * steps if math.isfinite(steps) else 0.0) for steps in _deviations(expected, few)
        ]
        worst, limit = max(zip(found, limits, strict=True), key=lambda pair: pair[0] / pair[1])
        return Finding(worst, rank_correlation(outputs[0], real[0]), limit)

    def see_weights(self, tensors: Sequence[Tensor], run: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        """The canary: once, see that visibly different weights change what comes out.

        Args:
            tensors: the graph's weights, float32.
            run: compiles weights anew, and gives their outputs on the probe.

        Raises:
            RuntimeError: they do not; the engine would go on scoring with old weights for ever.
        """
        if self._has_seen_weights:
            return
        canary = self._canary(tensors)
        outputs = run(tensors)
        try:
            others = run(canary)
        except NotFiniteError:
            return  # nothing can be seen in weights that the model cannot have
        wanted, other_wanted = (tensors_of(self._graph.run(weights, self.probes[0])) for weights in (tensors, canary))
        if deviation(other_wanted, wanted) <= 2 * self._limit:
            return  # nothing can be seen yet: a classifier that begins at zero, say
        if any(bool(tensor.isnan().any()) for tensor in outputs):
            return  # NaN are the same of any weights, and for the check to tell
        if deviation(others, outputs) <= self._limit / 2:
            raise RuntimeError(
                f"{self._name} must use the weights of the newest record: got the same outputs from weights "
                f"{CANARY} times as large; please report this, with the versions of its packages"
            )
        self._has_seen_weights = True

    def _canary(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Other weights of layers; a buffer might have to stay in a range."""
        named = zip(self._graph.names, tensors, strict=True)
        return tuple(
            t * CANARY if t.is_floating_point() and name not in self._graph.buffers else t for name, t in named
        )

    def _meant(self, tensors: Sequence[Tensor], program: Program | None, clipped: frozenset[int]) -> list[list[Tensor]]:
        """What a program should say of the first rows of each probe; in floating point, what torch does."""

        def run(few: Any) -> list[Tensor]:
            return tensors_of(self._graph.run(tensors, few))

        means = run if program is None else Simulation(self._graph, program, clipped)
        return [_of_rows(means(few), batch_size(few)) for few in self._few]

    def _check_shapes(self, got: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> None:
        shapes = [[tuple(tensor.shape) for each in outputs for tensor in each] for outputs in (got, expected)]
        rows = [batch_size(few) for few in self._few]
        others = [
            shape for each, n in zip(expected, rows, strict=True) for t in each if (shape := tuple(t.shape))[0] != n
        ]
        if others:
            raise ValueError(
                f"outputs of {self._name} must have the samples in their first dimension: got one of {others[0]} for "
                f"{rows[0]} samples, such as a state of an LSTM; leave it out of what forward returns, or use "
                "oracle='torch:fp32' or 'torch:bf16', which run the model as it is"
            )
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{self._name} must give outputs of the model's shapes: got {shapes[0]} instead of {shapes[1]}, so it "
                "converts an operation of the model wrongly; use oracle='torch:bf16'"
            )


def _deviations(got: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], bits: int = 8) -> list[float]:
    """Of each probe."""
    return [deviation(g, e, bits) for g, e in zip(got, expected, strict=True)]


def _of_rows(outputs: Sequence[Tensor], rows: int) -> list[Tensor]:
    """The first rows of outputs, without those that have none, which depend on how many there were."""
    return [tensor[:rows] for tensor in outputs if tensor.ndim]
