"""The engine contract: what executes the oracle's forward pass."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch

from infer2train.oracle.snapshot import Record


@dataclass(frozen=True)
class Prepared:
    """All that an engine needs to run one version, for `Engine.use` of the engine that prepared it.

    Args:
        version: of the record.
        program: what the engine wants to keep there.
    """

    version: int
    program: Any


class Engine(ABC):
    """Runs a model forward, in evaluation mode, in some precision, on weights that are replaced again and again.

    Built once for (model, precision, device). A pool calls it from one thread, but for `calibrated` and `prepared`,
    which one second thread may call instead. Scoring never moves the trainer's weights, gradients, batch-norm
    statistics or random state. The tensors that `outputs` returns belong to the caller until the next call of
    `outputs`. An engine can be pickled, and works in the process that unpickles it as one that was never refreshed.
    """

    name: str
    """As it is asked for, e.g. `torch:bf16`."""

    device: torch.device
    """Where it takes its inputs."""

    version: int | None = None
    """Version of the record in use; None until the first refresh."""

    takes_any_size: bool = True
    """Whether inputs may change their size behind the rows, as texts that are padded batch by batch do."""

    notes: tuple[str, ...] = ()
    """What was decided when it was built that its user did not say, one line each."""

    def calibrated(self, record: Record) -> Record:
        """The record with all that a refresh needs to know besides weights, which whoever publishes it asks for once.

        Raises:
            ValueError: as `refresh`.
        """
        return record

    @final
    def refresh(self, record: Record) -> None:
        """Use the weights of `record` from now on, and set `version` to its version.

        Raises:
            ValueError: the record is of another architecture; the engine keeps what it had.
            NotFiniteError: its weights are NaN or infinite; likewise.
        """
        self.use(self.prepared(record))

    @abstractmethod
    def prepared(self, record: Record) -> Prepared:
        """The long part of a refresh: everything that `use` needs to run the record's weights.

        One second thread may call it while `outputs` runs in the first: it changes nothing that `outputs` sees. It
        copies from the record.

        Raises:
            ValueError: as `refresh`.
        """

    @abstractmethod
    def use(self, prepared: Prepared) -> None:
        """The short part: run what was prepared from now on, and set `version`. Called between calls of `outputs`.

        Several may be prepared, and used in any order, more than once.
        """

    @abstractmethod
    def outputs(self, inputs: Any) -> Any:
        """The model's outputs for a pytree of inputs, as the model itself would return them in evaluation mode.

        Raises:
            RuntimeError: the engine was never refreshed.
        """

    @final
    def _must_be_refreshed(self) -> None:
        if self.version is None:
            raise RuntimeError(
                "an engine must be refreshed before it is asked for outputs: got none; call refresh(record)"
            )

    @abstractmethod
    def precisions(self) -> dict[str, str]:
        """The precision in which each convolution and linear layer really ran, e.g. `{"stem": "bf16"}`.

        Known after the first call of `outputs`; empty before.
        """

    def totals(self) -> dict[str, float]:
        """Running totals of what happened at refreshes, e.g. `refreshes`, `recalibrations`, `fp32_versions`."""
        return {}
