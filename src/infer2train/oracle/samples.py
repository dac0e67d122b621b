"""The inputs that an engine looks at besides candidates: calibration samples of each version, and a fixed probe."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from infer2train.batches import batch_size, map_tensors, tensors_of
from infer2train.draws.addresses import Addresses, Purpose, integers, seeds
from infer2train.sources.source import Source

PROBE_VIEWS = 8
"""Views of each sample of the probe."""
LOOKS = 8
"""Batches of two samples by which it is told whether inputs change their size."""


class Samples(ABC):
    """Where an engine gets inputs to calibrate and to check itself on."""

    @abstractmethod
    def calibration(self, version: int, rows: int) -> Any:
        """Inputs to measure the ranges of a version on: a function of the version alone; more rows begin with fewer."""

    @abstractmethod
    def probe(self, rows: int) -> Any:
        """(inputs, targets) that never change; each `PROBE_VIEWS` rows in a row are views of one sample."""


def other_sizes(samples: Samples, example: Any) -> list[Any]:
    """Small batches whose inputs have other sizes behind the rows than the example's, one of each; none for images of
    one size."""
    found = {tuple(tensor.shape[1:] for tensor in tensors_of(example)): example}
    for version in range(LOOKS):
        inputs = samples.calibration(version, 2)
        found.setdefault(tuple(tensor.shape[1:] for tensor in tensors_of(inputs)), inputs)
    return list(found.values())[1:]


class SourceSamples(Samples):
    """Random views of the training data, at addresses of their own.

    Args:
        source: what is read.
        ids: gives the ids that may be read: those that the run trains on. Asked once, when first needed.
        seed: of the run.
        split: batch -> (inputs, targets).
    """

    def __init__(
        self,
        source: Source,
        ids: Callable[[], Int64[np.ndarray, " n"]],
        seed: int,
        split: Callable[[Any], tuple[Any, Any]],
    ) -> None:
        self._source, self._seed, self._split = source, seed, split
        self._ids: Callable[[], Int64[np.ndarray, " n"]] | None = ids

    def __getstate__(self) -> dict[str, Any]:
        # Who gives the ids holds the user's loader, which another process has no use for.
        return {**self.__dict__, "_sorted_ids": self._sorted_ids, "_ids": None}

    def calibration(self, version: int, rows: int) -> Any:
        slots = np.arange(rows)
        at = integers(len(self._sorted_ids), self._seed, Purpose.CALIBRATION, draw=version, slot=slots)
        view_seeds = seeds(self._seed, Purpose.CALIBRATION, draw=version, slot=slots, view=1)
        return self._split(self._source.batch(Addresses(self._sorted_ids[at], view_seeds)))[0]

    def probe(self, rows: int) -> Any:
        slots, views = np.divmod(np.arange(rows), PROBE_VIEWS)
        at = integers(len(self._sorted_ids), self._seed, Purpose.PROBE, slot=slots)
        view_seeds = seeds(self._seed, Purpose.PROBE, slot=slots, view=views + 1)
        return self._split(self._source.batch(Addresses(self._sorted_ids[at], view_seeds)))

    @cached_property
    def _sorted_ids(self) -> Int64[np.ndarray, " n"]:
        assert self._ids is not None
        return np.unique(self._ids())


class GivenSamples(Samples):
    """The same inputs for every version, repeated where more rows are asked for. For engines used by hand.

    Args:
        inputs: a pytree with at least two rows.
        targets: of the same rows, where fidelity is measured.
    """

    def __init__(self, inputs: Any, targets: Any = None) -> None:
        self._inputs, self._targets = inputs, targets

    def calibration(self, version: int, rows: int) -> Any:
        return self._rows(self._inputs, rows)

    def probe(self, rows: int) -> Any:
        return self._rows(self._inputs, rows), self._rows(self._targets, rows)

    def _rows(self, tree: Any, rows: int) -> Any:
        index = torch.arange(rows) % batch_size(self._inputs)
        return map_tensors(lambda tensor: tensor[index.to(tensor.device)], tree)
