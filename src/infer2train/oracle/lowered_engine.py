"""What every engine has in common that is lowered from the graph of a model, and the refresh that checks itself.

The graph is made and converted once. A refresh folds the record's weights, puts S, Z and integers in their places,
compiles beside the old program, compares the new one on a probe with the simulation of the same record, and swaps.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from infer2train.batches import batch_size, map_tensors, pad_batch, take_rows, tensors_of, to_device
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.samples import Samples
from infer2train.oracle.snapshot import NotFiniteError, Record, RecordGate
from infer2train.quantization.fold import fold_plan, folded_tensors
from infer2train.quantization.graph import WeightGraph
from infer2train.quantization.program import Program, Simulation, deviation, get_scheme, specify
from infer2train.quantization.ranges import measure_ranges

CPU = torch.device("cpu")
ROWS = 32
"""Rows of every call where nothing else is asked for: small enough for a core's cache."""
CALIBRATION_ROWS = 16
"""Samples that ranges are measured on at each version."""
RECALIBRATION_FACTOR = 8
"""How many times more of them a version is calibrated on again whose program failed its check."""
PROBE_ROWS = 4
"""Rows on which a new program is compared with its simulation."""
LIMITS = {"int8": 4.0, "fp32": 0.5, "bf16": 24.0}
"""Greatest deviation from the simulation that a refresh accepts, in output quantisation steps. Sound int8 programs stay
about 2, since they differ only in which way a tie is rounded; stale or misplaced weights are tens of steps away. bf16
has 8 significant bits in every operation."""
CANARY = 1.1
"""What the weights of the canary are multiplied by: outputs of one layer change by 25 steps, of 200 do not overflow."""
EVENTS = ("refreshes", "recalibrations", "fp32_versions", "deviation_sum")

Lowered = Callable[[list[Tensor]], list[Tensor]]
"""A compiled program: flat inputs of exactly `rows` rows -> flat outputs."""


@dataclass(frozen=True)
class Compiled:
    """What is run for one version.

    Args:
        lowered: the program; None where this version is run in float32 by torch.
        weights: the graph's, folded, float32.
        clipped: sites at which the program is more exact than it must be, see `Simulation`.
        events: what its preparation adds to the totals.
    """

    lowered: Lowered | None
    weights: tuple[Tensor, ...]
    clipped: frozenset[int]
    events: Mapping[str, float]


class LoweredEngine(Engine):
    """An engine that runs a converted graph.

    Args:
        name: as it is asked for.
        model: the trainer's; its structure is converted, its weights come with the records.
        samples: calibration samples and probe.
        bits: of weights and activations; None runs in floating point.
        weight_bits: of weights, where they have fewer. Default: `bits`.
        scheme: how S and Z are chosen, an entry of `quantization.program.SCHEMES`.
        rows: of every call; other batches are padded and cut to it.
        limit: deviation that a refresh accepts, in output quantisation steps.
        device: where weights are folded and ranges measured, and where compiled programs take their inputs.

    Raises:
        GraphError: the model cannot be made into a graph.
        ValueError: an operation that the engine cannot run.
    """

    has_reference = True
    takes_any_rows = False
    """Whether compiled programs take any number of rows, so that the probe need not be padded."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        samples: Samples,
        bits: int | None,
        weight_bits: int | None = None,
        scheme: str,
        rows: int,
        limit: float,
        device: torch.device = CPU,
    ) -> None:
        self.name = name
        self.device = device
        self.rows = max(2, rows)
        self._samples, self._bits, self._scheme, self._limit = samples, bits, scheme, limit
        self._percentile = get_scheme(scheme).percentile
        self.weight_bits = weight_bits or bits
        """Of weights; None in floating point."""
        if self.weight_bits != bits:
            self.notes = (
                f"weights of {name} have {self.weight_bits} bits: without VNNI this CPU adds products of {bits} bits "
                "wrongly",
            )
        self._gate = RecordGate(model)
        skeleton, self._pairs = fold_plan(model)
        example = map_tensors(Tensor.cpu, samples.calibration(0, self.rows))
        self.graph = WeightGraph(skeleton.cpu().float(), example).to(device)
        self._fixed_rows = None if self.graph.takes_any_rows else self.rows
        self._probe = to_device(samples.probe(self._fixed_rows or PROBE_ROWS)[0], device)
        self._clipped: frozenset[int] = frozenset()
        self.may_clip: frozenset[int] = frozenset()
        """Sites at which it might be, as far as its compiled graph tells."""
        self._has_proven = False
        self._forget()
        self._convert()

    def _forget(self) -> None:
        """Be as one that was never refreshed, but for what was learned of the compiled graph."""
        self.version = None
        self._in_use = Compiled(None, (), frozenset(), {})
        self._admitted_last: tuple[Mapping[str, Tensor], tuple[Tensor, ...]] | None = None
        self._totals = dict.fromkeys(EVENTS, 0.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_in_use", "_admitted_last")}

    # What an engine is

    @abstractmethod
    def _convert(self) -> None:
        """Convert the graph, once."""

    @abstractmethod
    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        """Compile the converted graph with these weights, quantised as `program` says, or real where there is none."""

    @abstractmethod
    def _ran_in(self, lowered: Lowered) -> dict[str, str]:
        """The precision of each layer, read from a compiled program."""

    # The contract

    def calibrated(self, record: Record) -> Record:
        """The record with the ranges of its activations; itself where it has them or none are needed."""
        if self._bits is None or record.ranges:
            return record
        tensors = self._admitted(record)
        ranges = self._ranges(record, tensors, CALIBRATION_ROWS)
        self._admitted_last = record.tensors, tensors
        return replace(record, ranges=ranges)

    def prepared(self, record: Record) -> Prepared:
        """A program compiled from the record's weights that does what it should.

        A program that deviates too far from its simulation is calibrated again on more samples; one that still does is
        left aside, and this version is run in float32 by torch, with a warning.

        Raises:
            ValueError: the record is of another architecture, or holds NaN or infinity.
        """
        tensors = self._admitted(record)
        if not self._has_proven:
            self._prove(record, tensors)
        events = {"refreshes": 1.0}
        measured = self._bits is None or record.ranges
        lowered, found = self._checked(
            tensors, record.ranges if measured else self._ranges(record, tensors, CALIBRATION_ROWS)
        )
        if lowered is None and self._bits is not None:
            events["recalibrations"] = 1
            ranges = self._ranges(record, tensors, CALIBRATION_ROWS * RECALIBRATION_FACTOR)
            lowered, found = self._checked(tensors, ranges)
        if lowered is None:
            events["fp32_versions"] = 1
            warnings.warn(
                f"{self.name} deviates by {found:.3g} output quantisation steps from its simulation at version "
                f"{record.version}, {self._limit:g} are allowed: this version is scored in fp32 by torch",
                RuntimeWarning,
            )
        events["deviation_sum"] = min(found, self._limit)
        return Prepared(record.version, Compiled(lowered, tensors, self._clipped, events))

    def use(self, prepared: Prepared) -> None:
        self._in_use, self.version = prepared.program, prepared.version
        for name, number in self._in_use.events.items():
            self._totals[name] += number

    def outputs(self, inputs: Any) -> Any:
        if self.version is None:
            raise RuntimeError(
                "an engine must be refreshed before it is asked for outputs: got none; call refresh(record)"
            )
        inputs = self.graph.canonical(inputs)
        if self._in_use.lowered is None:
            return self.reference(inputs)
        return self.graph.outputs_from(self._call(self._in_use.lowered, inputs))

    def reference(self, inputs: Any) -> Any:
        """The outputs of the weights in use in float32, by torch."""
        inputs = self.graph.canonical(inputs)
        if self._fixed_rows is None:
            return self.graph.run(self.weights, inputs)
        structure = pytree.tree_structure(self.graph.example)

        def run(flat: list[Tensor]) -> list[Tensor]:
            return tensors_of(self.graph.run(self.weights, pytree.tree_unflatten(flat, structure)))

        return self.graph.outputs_from(self._call(run, inputs))

    def precisions(self) -> dict[str, str]:
        if self.version is None:
            return {}
        if self._in_use.lowered is None:
            return {layer.name: "fp32" for layer in self.graph.layers}
        return self._ran_in(self._in_use.lowered)

    def specified(self, tensors: Sequence[Tensor], ranges: Mapping[str, Tensor]) -> Program | None:
        """The quantised program of these weights and ranges, as this engine runs it; None in floating point."""
        if self._bits is None:
            return None
        here = {name: found.to(self.device) for name, found in ranges.items()}
        return specify(self.graph, tensors, here, self._bits, self._scheme, self.weight_bits)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """In use: the graph's, folded, float32."""
        return self._in_use.weights

    @property
    def clipped(self) -> frozenset[int]:
        """Sites at which the program in use is more exact than it must be, see `Simulation`."""
        return self._in_use.clipped

    def totals(self) -> dict[str, float]:
        return dict(self._totals)

    # A refresh

    def _admitted(self, record: Record) -> tuple[Tensor, ...]:
        """The record's tensors, folded, if they may be used. Calibrating does the work that the refresh then needs."""
        known, self._admitted_last = self._admitted_last, None  # once: a record that comes again is looked at again
        if known is not None and known[0] is record.tensors:
            return known[1]
        self._gate.check(record, self.version)
        tensors = self._folded(record)
        self._gate.check_finite(dict(zip(self.graph.names, tensors, strict=True)), self.version, " once folded")
        return tensors

    def _folded(self, record: Record) -> tuple[Tensor, ...]:
        with torch.no_grad():
            folded = folded_tensors(self._pairs, record.tensors)
            # A copy, since a record may be on another device, in another precision, or be overwritten.
            return tuple(
                tensor.detach().to(
                    self.device, torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True
                )
                for tensor in self.graph.tensors(folded)
            )

    def _ranges(self, record: Record, tensors: Sequence[Tensor], rows: int) -> dict[str, Tensor]:
        inputs = to_device(self._samples.calibration(record.version, self._fixed_rows or rows), self.device)
        ranges = measure_ranges(self.graph, tensors, inputs, self._percentile)
        for name, found in ranges.items():
            if not bool(found.isfinite().all()):
                raise NotFiniteError(
                    f"activations must be finite: got NaN or infinity at {name} with the weights of version "
                    f"{record.version}; the engine keeps version {self.version}; lower the learning rate, or clip "
                    "gradients, if training has diverged"
                )
        return ranges

    def _checked(self, tensors: Sequence[Tensor], ranges: Any) -> tuple[Lowered | None, float]:
        """A program that does what its specification says, or None; and how far off it is."""
        program = self.specified(tensors, ranges)
        lowered = self._lower(tensors if program is None else program.tensors, program)
        if program is None:
            expected = tensors_of(self.graph.run(tensors, self._probe))
        else:
            expected = Simulation(self.graph, program, self._clipped)(self._probe)
        got = self._call(lowered, self.graph.canonical(self._probe))
        shapes = [[tuple(tensor.shape) for tensor in outputs] for outputs in (got, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{self.name} must give outputs of the model's shapes: got {shapes[0]} instead of {shapes[1]}, so it "
                "converts an operation of the model wrongly; use oracle='torch:bf16'"
            )
        found = deviation(got, expected, self._bits or 8)
        if program is not None and self.may_clip != self._clipped and found > 0:
            other = deviation(got, Simulation(self.graph, program, self.may_clip)(self._probe), self._bits or 8)
            if other < found:
                self._clipped, found = self.may_clip, other
        return (lowered if found <= self._limit else None), found

    def _prove(self, record: Record, tensors: Sequence[Tensor]) -> None:
        """The canary: once, see that visibly different weights change what comes out.

        Raises:
            RuntimeError: they do not; the engine would go on scoring with old weights for ever.
        """
        canary = tuple(t * CANARY if t.is_floating_point() else t for t in tensors)
        fresh = []
        for weights in (tensors, canary):
            ranges = self._ranges(record, weights, CALIBRATION_ROWS) if self._bits is not None else {}
            program = self.specified(weights, ranges)
            wanted = tensors_of(self.graph.run(weights, self._probe))
            lowered = self._lower(weights if program is None else program.tensors, program)
            fresh.append((wanted, self._call(lowered, self.graph.canonical(self._probe))))
        (old_wanted, old), (new_wanted, new) = fresh
        if deviation(new_wanted, old_wanted) <= 2 * self._limit:
            return  # nothing can be seen yet: a classifier that begins at zero, say
        if deviation(new, old) <= self._limit / 2:
            raise RuntimeError(
                f"{self.name} must use the weights of the newest record: got the same outputs from weights "
                f"{CANARY} times as large; please report this, with the versions of its packages"
            )
        self._has_proven = True

    def _call(self, lowered: Lowered, inputs: Any) -> list[Tensor]:
        """A compiled program on any number of rows."""
        total, parts = batch_size(inputs), []
        if self.takes_any_rows and self._fixed_rows is None and total < self.rows:
            return lowered(tensors_of(to_device(inputs, self.device)))
        for start in range(0, total, self.rows):
            rows = min(self.rows, total - start)
            piece = inputs if total == self.rows else map_tensors(lambda t: t[start : start + rows], inputs)  # noqa: B023
            found = lowered(tensors_of(to_device(pad_batch(piece, self.rows), self.device)))
            parts.append([take_rows(tensor, rows) for tensor in found])
        return parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
