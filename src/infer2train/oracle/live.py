"""What the model that is trained says of the probe: the truth that an oracle's picks are measured by.

Asked on the trainer's side when weights are published, and sent with them. An engine copies the model's structure once,
and sees only parameters and buffers change. Whatever else a forward pass reads (a temperature, a progressive α, a
module that was replaced) is old in every oracle for ever; so it is looked for here, where the model itself is at hand.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infer2train.batches import as_float32, call_model, map_tensors, take_rows, tensors_of, to_device
from infer2train.machine.device import device_of
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.quantization.frozen import OF_TORCH, evaluated_copy, frozen_copy
from infer2train.oracle.samples import PROBE_VIEWS
from infer2train.oracle.snapshot import parameters_and_buffers

MEASURED_EVERY_STEPS = 100
"""Least steps between two measurements: each costs the trainer the forward pass of one small batch."""
TOLERANCE = 1e-4
"""Relative difference of outputs beyond which an oracle's structure is called old."""
PLAIN = (bool, int, float, complex, str, type(None))


class LiveModel:
    """The model that is trained, asked in evaluation mode without moving anything of it.

    Args:
        model: the trainer's.
        monitor: whose probe it scores.
        update_every: steps between versions (T).
    """

    def __init__(self, model: nn.Module, monitor: FidelityMonitor, update_every: int) -> None:
        self._model, self._monitor = model, monitor
        self._inputs = to_device(monitor.inputs, device_of(model))
        self._then = asked_copy(model)
        # By counting versions alone, so that a resumed run measures the same ones.
        self._period = update_every * -(-MEASURED_EVERY_STEPS // update_every)
        self.is_outgrown = False
        """Whether the model's outputs were seen to depend on something that no oracle sees change."""

    def scores(self, version: int) -> Float[Tensor, " n"] | None:
        """The probe's scores by the model as it is now; None for versions that are not measured.

        Warns, once, where a model of its weights and of the structure that it had at first says something else.
        """
        if version % self._period:
            return None
        now = asked_copy(self._model)
        outputs = asked(now, self._inputs)
        self._compare_structure(now, outputs)
        return self._monitor.scores(outputs).cpu()

    def _compare_structure(self, now: nn.Module, outputs: Any) -> None:
        if self.is_outgrown or isinstance(now, torch.jit.ScriptModule):  # a script has no attributes but tensors
            return
        then = _with_tensors(self._then, parameters_and_buffers(now))
        few = asked(then, take_rows(self._inputs, PROBE_VIEWS))
        # What has no row for each sample (a balancing term, the states of layers) is compared of the whole probe alone.
        if are_close(few, take_rows(outputs, PROBE_VIEWS)) or are_close(asked(then, self._inputs), outputs):
            return
        self.is_outgrown = True
        names = ", ".join(_changed(self._then, now)) or "something that is neither a parameter nor a buffer"
        warnings.warn(
            "an oracle sees parameters and buffers change, and nothing else: got a model whose outputs depend on "
            f"{names}, which has changed since mine() was called, so every oracle scores with what it was then; make "
            "it a buffer (self.register_buffer(name, torch.tensor(value), persistent=False)), or call mine() again",
            RuntimeWarning,
        )


def asked(model: nn.Module, inputs: Any) -> Any:
    """The outputs of a copy of the model, in float32, whatever the caller's autocast; it may write to its inputs."""
    device = device_of(model)
    own = map_tensors(torch.clone, as_float32(to_device(inputs, device)))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return call_model(model, own)


def are_close(first: Any, second: Any) -> bool:
    """Whether two runs' outputs are the same, but for the order of additions."""
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return all(_is_close(a, b) for a, b in pairs)


def _is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    scale = float(b.abs().nan_to_num(0.0, 0.0, 0.0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)


def asked_copy(model: nn.Module) -> nn.Module:
    """The model in evaluation mode: its structure and buffers copied, its parameters shared, unless they need another
    precision."""
    real = (tensor for tensor in parameters_and_buffers(model).values() if tensor.is_floating_point())
    if any(tensor.dtype != torch.float32 for tensor in real):
        return frozen_copy(model).float()
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return evaluated_copy(model, shared)


def _with_tensors(structure: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The structure with these parameters and buffers in their places, as far as it has them."""
    for prefix, module in structure.named_modules(remove_duplicate=False):
        for kind in (module._parameters, module._buffers):
            for name, held in kind.items():
                fresh = tensors.get(f"{prefix}.{name}" if prefix else name)
                if held is not None and fresh is not None:
                    kind[name] = (
                        nn.Parameter(fresh, requires_grad=False) if kind is module._parameters else fresh.clone()
                    )
    return structure


def _changed(then: nn.Module, now: nn.Module) -> Iterator[str]:
    """Plain attributes that differ, as `name (then -> now)`, and modules that are not what they were."""
    before, after = dict(then.named_modules()), dict(now.named_modules())
    for name in [*before, *(name for name in after if name not in before)]:
        if type(before.get(name)) is not type(after.get(name)):
            yield f"the module {name or 'itself'}"
            continue
        old, new = (dict(_plain(vars(modules[name]))) for modules in (before, after))
        for path in [*old, *(path for path in new if path not in old)]:
            if old.get(path) != new.get(path):
                shown = f"{name}.{path}" if name else path
                yield f"{shown} ({old.get(path)!r} -> {new.get(path)!r})"


def _plain(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers, texts and small tensors among attributes, by their path through containers and plain objects."""
    waiting = [(name, value, 0) for name, value in attributes.items() if name not in OF_TORCH]
    while waiting:
        path, value, depth = waiting.pop(0)
        if isinstance(value, PLAIN):
            yield path, value
        elif isinstance(value, Tensor):
            if value.numel() == 1:
                yield path, value.item()
        elif depth < 3 and isinstance(value, Mapping):
            waiting += [(f"{path}[{key!r}]", part, depth + 1) for key, part in value.items()]
        elif depth < 3 and isinstance(value, list | tuple):
            waiting += [(f"{path}[{i}]", part, depth + 1) for i, part in enumerate(value)]
        elif depth < 3 and not isinstance(value, nn.Module | type):
            held = getattr(value, "__dict__", {})
            waiting += [(f"{path}.{key}", part, depth + 1) for key, part in held.items()]
