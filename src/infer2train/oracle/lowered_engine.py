"""What every engine has in common that is lowered from the graph of a model, and the refresh that checks itself.

The graph is made and converted once. A refresh folds the record's weights, puts S, Z and integers in their places,
compiles beside the old program, compares the new one on a probe with the simulation of the same record and with
float32, and swaps.
"""

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infer2train.batches import as_float32, batch_size, map_tensors, pad_batch, take_rows, tensors_of, to_device
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.quantization.fold import fold_plan, folded_tensors
from infer2train.oracle.quantization.graph import WeightGraph, require_python
from infer2train.oracle.quantization.program import Program, specify
from infer2train.oracle.quantization.ranges import measure_ranges
from infer2train.oracle.quantization.schemes import LONG_TAILS, get_scheme
from infer2train.oracle.samples import Samples, other_sizes
from infer2train.oracle.snapshot import NotFiniteError, Record, RecordGate, snapshot
from infer2train.oracle.trial import LEAST_SHARE, Trial, judged
from infer2train.oracle.verification import LIMITS, RANKED_ROWS, Finding, Verifier

CPU = torch.device("cpu")
ROWS = 32
"""Rows of every call where nothing else is asked for: small enough for a core's cache."""
CALIBRATION_ROWS = 16
"""Samples that ranges are measured on at each version."""
TAILS_ROWS = 64
"""As many where tails count, which few samples do not show."""
RECALIBRATION_FACTOR = 8
"""How many times more of them a version is calibrated on again whose program failed its check."""
EVENTS = ("refreshes", "recalibrations", "fp32_versions", "deviation_sum")
SHARE = "int8_share_sum"

Lowered = Callable[[list[Tensor]], list[Tensor]]
"""A compiled program: flat inputs of exactly `rows` rows, of any size behind them that is free in the graph -> flat
outputs."""


@dataclass(frozen=True)
class Compiled:
    """What is run for one version.

    Args:
        lowered: the program; None where this version is run in float32 by torch.
        weights: the graph's, folded, float32.
        events: what its preparation adds to the totals.
    """

    lowered: Lowered | None
    weights: tuple[Tensor, ...]
    events: Mapping[str, float]


class LoweredEngine(Engine):
    """An engine that runs a converted graph.

    Args:
        name: as it is asked for.
        model: the trainer's; its structure is converted, its weights come with the records.
        samples: calibration samples and probe.
        bits: of weights and activations; None runs in floating point.
        weight_bits: of weights, where they have fewer. Default: `bits`.
        scheme: how S and Z are chosen, an entry of `quantization.schemes.SCHEMES`.
        rows: of every call; other batches are padded and cut to it.
        device: where weights are folded and ranges measured, and where compiled programs take their inputs.

    Raises:
        GraphError: the model cannot be made into a graph.
        ValueError: an operation that the engine cannot run.
    """

    takes_any_rows = False
    """Whether compiled programs take any number of rows, so that the probe need not be padded."""
    fuses = True
    """Whether it runs a convolution in integers whose activation comes before the rounding, see `SiteFinder`."""
    real = "fp32"
    """Precision of what is not put into integers."""
    trial: Trial | None = None
    """What it did with the model's weights when it was built; None in floating point, or where they were not finite."""

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
        device: torch.device = CPU,
    ) -> None:
        self.name, self.device, self.rows = name, device, max(2, rows)
        self._samples, self._bits, self._scheme = samples, bits, scheme
        self._limit = LIMITS[self.real if bits is None else "int8"]
        self.weight_bits = weight_bits or bits
        """Of weights; None in floating point."""
        if self.weight_bits != bits:
            self.notes = (
                f"weights of {name} have {self.weight_bits} bits: without VNNI this CPU adds products of {bits} bits "
                "wrongly",
            )
        require_python(model)
        self._gate = RecordGate(model)
        skeleton, self._pairs = fold_plan(model)
        example = map_tensors(Tensor.cpu, samples.calibration(0, self.rows))
        others = [map_tensors(Tensor.cpu, other) for other in other_sizes(samples, example)]
        self.graph = WeightGraph(skeleton.cpu().float(), example, self.fuses, others).to(device)
        chosen = get_scheme(scheme)
        self.takes_any_size = any(len(dims) > 1 for dims in self.graph.free)
        self._percentile = chosen.percentile
        own_tails = LONG_TAILS if self.graph.has_long_tails else 0.0
        self._tails = own_tails if chosen.tails is None else chosen.tails
        self._calibration_rows = TAILS_ROWS if self._tails else CALIBRATION_ROWS
        self._fixed_rows = None if self.graph.takes_any_rows else self.rows
        ranked_rows = RANKED_ROWS * (2 if self._tails else 1)
        probe = to_device(samples.probe(self._fixed_rows or ranked_rows)[0], device)
        self.may_clip: frozenset[int] = frozenset()
        """Sites at which a program might be more exact than it must be, as far as its compiled graph tells."""
        others = [] if self._fixed_rows else to_device(_extremes(others), device)
        self._verifier = Verifier(name, self.graph, probe, self._fixed_rows, bits, self._limit, others)
        self._forget()
        self._convert()
        if bits is not None:
            self._try(model)

    def _forget(self) -> None:
        """Be as one that was never refreshed, but for what was learned of the compiled graph."""
        self.version, self._has_warned = None, False
        self._in_use = Compiled(None, (), {})
        self._admitted_last: tuple[Mapping[str, Tensor], tuple[Tensor, ...]] | None = None
        self._totals = dict.fromkeys((*EVENTS, SHARE) if self._bits is not None else EVENTS, 0.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._verifier = copy.copy(self._verifier)  # what it finds out is of one engine
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_in_use", "_admitted_last")}

    @abstractmethod
    def _convert(self) -> None:
        """Convert the graph, once."""

    @abstractmethod
    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        """Compile the converted graph with these weights, quantised as `program` says, or real where there is none."""

    def _write(self, lowered: Lowered, path: Path) -> None:
        """Write a compiled program as a file of its runtime."""
        raise ValueError(
            f"a program is saved by an engine that has files: got {self.name}; use openvino or onnxruntime"
        )

    @abstractmethod
    def _ran_in(self, lowered: Lowered) -> dict[str, str]:
        """The precision of each layer, read from a compiled program."""

    # The contract

    def calibrated(self, record: Record) -> Record:
        """The record with the ranges of its activations; itself where it has them or none are needed."""
        if self._bits is None or record.ranges:
            return record
        tensors = self._admitted(record)
        ranges = self._ranges(record, tensors, self._calibration_rows)
        self._admitted_last = record.tensors, tensors
        return replace(record, ranges=ranges)

    def prepared(self, record: Record) -> Prepared:
        """A program compiled from the record's weights that does what it should.

        A program that deviates too far from its simulation, or that orders the probe otherwise than float32, is
        calibrated again on more samples; one that still does is left aside, and this version is run in float32 by
        torch. That is warned of once, and counted.

        Raises:
            ValueError: the record is of another architecture, or holds NaN or infinity.
        """
        tensors = self._admitted(record)
        self._verifier.see_weights(tensors, lambda weights: self._on_probe(record, weights))
        lowered, finding, times = self._sound(record, tensors)
        events = {"refreshes": 1.0, "recalibrations": times - 1.0, "deviation_sum": min(finding.deviation, self._limit)}
        if finding.has_passed:
            self.trial = self.trial or self._judged(lowered, finding)
            events[SHARE] = self.trial.int8_share
        else:
            events["fp32_versions"] = 1.0
            self._warn(record, finding)
        known = {name: number for name, number in events.items() if name in self._totals}
        in_use = lowered if finding.has_passed else None
        return Prepared(record.version, Compiled(in_use, tensors, known))

    def save(self, record: Record, path: Path) -> None:
        """Write the program that these weights are run by, for any number of rows where the model takes any.

        Args:
            record: its ranges are measured where it has none.
            path: of the file. Every runtime has its own kind; OpenVINO's has a .bin beside it.

        Raises:
            ValueError: no program of these weights does what it should, or the engine has no files.
        """
        lowered, finding, _ = self._sound(record, self._admitted(record))
        if not finding.has_passed:
            raise ValueError(f"a program that is saved must pass its check: got {finding.reason(record.version)}")
        self._write(lowered, path)

    def use(self, prepared: Prepared) -> None:
        self._in_use, self.version = prepared.program, prepared.version
        for name, number in self._in_use.events.items():
            self._totals[name] += number

    def outputs(self, inputs: Any) -> Any:
        self._must_be_refreshed()
        inputs = self.graph.canonical(inputs)
        if self._in_use.lowered is None:
            return self.reference(inputs)
        return self.graph.outputs_from(self._call(self._in_use.lowered, inputs))

    def reference(self, inputs: Any) -> Any:
        """The outputs of the weights in use in float32, by torch; safe beside `prepared`, as `outputs` is."""
        inputs = self.graph.canonical(inputs)
        if self._fixed_rows is None:
            return self.graph.run(self.weights, inputs)

        def run(flat: list[Tensor]) -> list[Tensor]:
            return tensors_of(self.graph.run(self.weights, self.graph.inputs_from(flat)))

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
        """Sites at which its programs were seen to be more exact than they must be, see `Simulation`."""
        return self._verifier.clipped

    def totals(self) -> dict[str, float]:
        return dict(self._totals)

    # A refresh

    def _admitted(self, record: Record) -> tuple[Tensor, ...]:
        """The record's tensors, folded, if they may be used. Calibrating does the work that the refresh then needs."""
        known, self._admitted_last = self._admitted_last, None  # once: a record that comes again is looked at again
        if known is not None and known[0] is record.tensors:
            return known[1]
        self._gate.check(record, self.version)
        with torch.no_grad():
            folded = self.graph.tensors(folded_tensors(self._pairs, record.tensors))
            # Copies, since a record may be on another device, in another precision, or be overwritten.
            tensors = tuple(tensor.detach().to(self.device, copy=True) for tensor in as_float32(folded))
        self._gate.check_finite(dict(zip(self.graph.names, tensors, strict=True)), self.version, " once folded")
        return tensors

    def _ranges(self, record: Record, tensors: Sequence[Tensor], rows: int, tails: float = 0.0) -> dict[str, Tensor]:
        if self._bits is None:
            return {}
        inputs = to_device(self._samples.calibration(record.version, self._fixed_rows or rows), self.device)
        ranges = measure_ranges(self.graph, tensors, inputs, self._percentile, tails or self._tails)
        self._gate.check_ranges(ranges, record.version, self.version)
        return ranges

    def _sound(self, record: Record, tensors: Sequence[Tensor]) -> tuple[Lowered, Finding, int]:
        """A program that has passed, or the last that was tried; what was found, and how many were."""
        ranges = record.ranges or self._ranges(record, tensors, self._calibration_rows)
        lowered, finding = self._checked(tensors, ranges)
        if finding.has_passed or self._bits is None:
            return lowered, finding, 1
        # What is ranked wrongly was cut off: the hardest views have the greatest activations.
        tails = LONG_TAILS if finding.deviation <= self._limit else 0.0
        ranges = self._ranges(record, tensors, CALIBRATION_ROWS * RECALIBRATION_FACTOR, tails)
        return *self._checked(tensors, ranges), 2

    def _checked(self, tensors: Sequence[Tensor], ranges: Mapping[str, Tensor]) -> tuple[Lowered, Finding]:
        """A program, and whether it does what its specification says."""
        program, lowered, outputs = self._compiled(tensors, ranges)
        return lowered, self._verifier.check(outputs, tensors, program, self.may_clip)

    def _compiled(
        self, tensors: Sequence[Tensor], ranges: Mapping[str, Tensor]
    ) -> tuple[Program | None, Lowered, list[list[Tensor]]]:
        """The specification of these weights, its program, and what that says of the probes."""
        program = self.specified(tensors, ranges)
        lowered = self._lower(tensors if program is None else program.tensors, program)
        return program, lowered, [self._call(lowered, self.graph.canonical(x)) for x in self._verifier.probes]

    def _on_probe(self, record: Record, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What weights say of the probe with ranges of their own."""
        return self._compiled(tensors, self._ranges(record, tensors, self._calibration_rows))[2][0]

    def _try(self, model: nn.Module) -> None:
        """One program, of the weights that the model has now, to know and to say what runs in integers."""
        record = snapshot(model, 0)
        try:
            tensors = self._admitted(record)
            lowered, finding, _ = self._sound(record, tensors)
        except NotFiniteError:
            return  # the pool will refuse them
        self.trial = self._judged(lowered, finding)
        self.notes += (self.trial.note(self.name),)
        if self.trial.int8_share < LEAST_SHARE:
            warnings.warn(
                f"{self.trial.note(self.name)}: the rest is as slow as {self.real}; layers are in integers if they are "
                "convolutions or linear layers",
                RuntimeWarning,
            )

    def _judged(self, lowered: Lowered, finding: Finding) -> Trial:
        return judged(self.graph, self._ran_in(lowered), finding.has_passed, finding.rank_correlation)

    def _warn(self, record: Record, finding: Finding) -> None:
        """Once, that a version is scored in fp32; the next ones are counted."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self.name} {finding.reason(record.version)}: this version is scored in fp32 by torch, and so is "
                "each that fails this check after it, which fp32_versions counts",
                RuntimeWarning,
            )

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
        return parts[0] if len(parts) == 1 else [_joined(pieces) for pieces in zip(*parts, strict=True)]


def _extremes(batches: Sequence[Any]) -> list[Any]:
    """The smallest and the largest of them."""
    ordered = sorted(batches, key=lambda batch: sum(tensor.numel() for tensor in tensors_of(batch)))
    return [*ordered[:1], *ordered[1:][-1:]]


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """What several calls gave, as one; the mean of what has no rows, such as a mean loss."""
    return torch.cat(list(pieces)) if pieces[0].ndim else torch.stack(list(pieces)).mean(0)
