"""Published records: the weights of one version, as everything behind the oracle receives them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Record:
    """Weights and buffers after `version` steps. Immutable: an engine copies from it and never writes to it.

    Args:
        version: steps acknowledged when it was taken.
        tensors: a copy of every entry of the model's `state_dict()`, under its name there.
    """

    version: int
    tensors: Mapping[str, Tensor]


def snapshot(model: nn.Module, version: int) -> Record:
    """A copy of the model's state as the record of `version`, on the model's own device."""
    with torch.no_grad():
        return Record(version, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()})


def check_architecture(expected: Mapping[str, Tensor], record: Record) -> None:
    """Refuse a record whose tensors are not those that an engine was built for.

    Raises:
        ValueError: names or shapes differ; it says which.
    """
    wrong = [f"{name} is missing" for name in expected if name not in record.tensors]
    wrong += [f"{name} is unknown" for name in record.tensors if name not in expected]
    wrong += [
        f"{name} has shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in record.tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + ("; …" if len(wrong) > 5 else "")
        raise ValueError(
            f"a record must hold the tensors of the model that the engine was built for: got {len(wrong)} differences "
            f"({shown}); build a new engine for a new architecture"
        )
