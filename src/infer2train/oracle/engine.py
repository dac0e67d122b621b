"""The engine contract: what executes the oracle's forward pass."""

from abc import ABC, abstractmethod
from typing import Any

import torch

from infer2train.oracle.snapshot import Record


class Engine(ABC):
    """Runs a model forward, in evaluation mode, in some precision, on weights that are replaced again and again.

    Built once for (model, precision, device). A pool calls `refresh` and `outputs` from one thread. Scoring never moves
    the trainer's weights, gradients, batch-norm statistics or random state. The tensors that `outputs` returns belong
    to the caller until the next call of `outputs`.
    """

    name: str
    """As it is asked for, e.g. `torch:bf16`."""

    device: torch.device
    """Where it takes its inputs."""

    version: int | None = None
    """Version of the record in use; None until the first refresh."""

    has_reference: bool = False
    """Whether `reference` can be asked: an engine that rounds keeps the float32 weights that it rounded."""

    def calibrated(self, record: Record) -> Record:
        """The record with all that a refresh needs to know besides weights, which whoever publishes it asks for once.

        Raises:
            ValueError: as `refresh`.
        """
        return record

    @abstractmethod
    def refresh(self, record: Record) -> None:
        """Use the weights of `record` from now on, and set `version` to its version.

        Raises:
            ValueError: the record is of another architecture; the engine keeps what it had.
            NotFiniteError: its weights are NaN or infinite; likewise.
        """

    @abstractmethod
    def outputs(self, inputs: Any) -> Any:
        """The model's outputs for a pytree of inputs, as the model itself would return them in evaluation mode.

        Raises:
            RuntimeError: the engine was never refreshed.
        """

    @abstractmethod
    def precisions(self) -> dict[str, str]:
        """The precision in which each convolution and linear layer really ran, e.g. `{"stem": "bf16"}`.

        Known after the first call of `outputs`; empty before.
        """

    def reference(self, inputs: Any) -> Any:
        """The outputs of the weights in use in float32, where `has_reference`."""
        raise NotImplementedError

    def totals(self) -> dict[str, float]:
        """Running totals of what happened at refreshes, e.g. `refreshes`, `recalibrations`, `fp32_versions`."""
        return {}
