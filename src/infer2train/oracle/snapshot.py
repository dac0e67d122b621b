"""Published records: the weights of one version, as everything behind the oracle receives them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

Room = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Uninitialised memory for a copy of tensors, under the same names."""

OF_BUFFERS = (
    "; give a buffer that is a mask or a record finite numbers (torch.finfo(torch.float32).min for -inf), or let a "
    "mask hold its infinity when mine() is called"
)
"""What else may be wrong where a buffer is not finite."""


@dataclass(frozen=True)
class Record:
    """Weights and buffers after `version` steps. Immutable: an engine copies from it and never writes to it.

    Args:
        version: steps acknowledged when it was taken.
        tensors: a copy of `parameters_and_buffers(model)`.
        ranges: of activations, (T_min, T_max) by the name of their site; empty where no engine asked for them.
        probe_scores: what the model itself said of the probe that oracles are measured on; None where it was not asked.
    """

    version: int
    tensors: Mapping[str, Tensor]
    ranges: Mapping[str, Tensor] = field(default_factory=dict)
    probe_scores: Float[Tensor, " n"] | None = None


def parameters_and_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that a model's forward pass may read: what an oracle needs of it, under the names of its modules.

    Not `state_dict()`, which leaves out buffers that are not persistent, and whatever a hook takes out, and holds
    extra state, which is no tensor of a module. A tensor that two modules share stands under both names. They are the
    model's own, detached.

    Example:
        >>> list(parameters_and_buffers(nn.Sequential(nn.Linear(2, 2))))
        ['0.weight', '0.bias']
    """
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = (
            module.named_parameters(recurse=False, remove_duplicate=False),
            module.named_buffers(recurse=False, remove_duplicate=False),
        )
        found |= {f"{prefix}.{name}" if prefix else name: tensor.detach() for named in own for name, tensor in named}
    return found


def snapshot(model: nn.Module, version: int, room: Room | None = None) -> Record:
    """A copy of the model's tensors as the record of `version`.

    Args:
        model: what is copied.
        version: steps that it has made.
        room: gives the memory for the copy. Default: fresh, on the model's own device.
    """
    with torch.no_grad():
        state = parameters_and_buffers(model)
        if room is None:
            return Record(version, {name: tensor.clone() for name, tensor in state.items()})
        copies = room(state)
        for name, tensor in state.items():
            copies[name].copy_(tensor)
        return Record(version, copies)


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


class NotFiniteError(ValueError):
    """A record's weights are NaN or infinite: training has diverged."""


class RecordGate:
    """Refuses records that an engine built for one model must not use.

    Args:
        model: whose records are expected.
    """

    def __init__(self, model: nn.Module) -> None:
        state = parameters_and_buffers(model)
        self.expected = {name: tensor.to("meta") for name, tensor in state.items()}
        """The tensors of a record, without their data."""
        self._buffers = state.keys() - {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._may_be_infinite = {name for name in self._buffers if not _is_finite(state[name])}

    def check(self, record: Record, engine_version: int | None) -> None:
        """Refuse a record of another architecture, or one that holds NaN or infinity.

        A buffer that held infinity at construction (an attention mask) may do so.

        Raises:
            ValueError: names or shapes differ.
            NotFiniteError: a tensor is not finite.
        """
        check_architecture(self.expected, record)
        self.check_finite(record.tensors, engine_version)

    def check_finite(self, tensors: Mapping[str, Tensor], engine_version: int | None, how: str = "") -> None:
        """Refuse tensors that are not finite, saying `how` they came about.

        Raises:
            NotFiniteError: one is not.
        """
        if _are_finite(tensors.values()):  # nearly always, and cheaper than one by one
            return
        for name, tensor in tensors.items():
            if not _is_finite(tensor) and (name not in self._may_be_infinite or bool(tensor.isnan().any())):
                raise NotFiniteError(
                    f"a record's weights must be finite: got NaN or infinity in {name}{how}; the engine keeps version "
                    f"{engine_version}; lower the learning rate, or clip gradients, if training has diverged"
                    f"{OF_BUFFERS if name in self._buffers else ''}"
                )

    def check_ranges(self, ranges: Mapping[str, Tensor], version: int, engine_version: int | None) -> None:
        """Refuse ranges of activations, measured with the weights of `version`, that are not finite.

        Raises:
            NotFiniteError: one is not.
        """
        for name, found in ranges.items():
            if not _is_finite(found):
                raise NotFiniteError(
                    f"activations must be finite: got NaN or infinity at {name} with the weights of version {version}; "
                    f"the engine keeps version {engine_version}; lower the learning rate, or clip gradients, if "
                    "training has diverged"
                )


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    floating = [tensor.detach().flatten() for tensor in tensors if tensor.is_floating_point()]
    return not floating or bool((torch.cat(floating) * 0).sum() == 0)  # 0 · NaN and 0 · ∞ are NaN


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
