"""A model as an oracle holds it: a copy in evaluation mode that shares nothing with the one that is trained."""

import copy
from collections.abc import Iterator, Mapping
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor, nn

from infer2train.oracle.quantization.hooks import without_hooks

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has: of torch's own business, `training` among them."""


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in evaluation mode, without gradients, that shares no storage with it.

    Tensors that a forward pass left in the model's attributes (a weight that `weight_norm` or pruning computes, a kept
    feature map) are copied without their history, which `copy.deepcopy` alone refuses. Forward hooks of the user's are
    left out, see `hooks`.

    Example:
        >>> frozen_copy(nn.utils.weight_norm(nn.Linear(2, 2))).weight.requires_grad
        False
    """
    result = evaluated_copy(model)
    for parameter in result.parameters():
        parameter.requires_grad_(False)  # one by one: TorchScript's modules have no requires_grad_
        parameter.grad = None
    return result


def evaluated_copy(model: nn.Module, shared: Mapping[int, Any] | None = None) -> nn.Module:
    """A copy of the model in evaluation mode, but for what `shared` puts in places of objects, by their id.

    Raises:
        ValueError: something of it cannot be copied.
    """
    known = without_history(model) | without_hooks(model) | dict(shared or {})
    try:
        with torch.no_grad():  # TorchScript copies by computing
            result = copy.deepcopy(model, known)
    except (TypeError, PicklingError) as error:
        names = ", ".join(_not_copied(model)) or type(model).__name__
        raise ValueError(
            f"an oracle needs a copy of the model, as copy.deepcopy makes it: got {type(error).__name__}: {error}, of "
            f"{names}; keep it outside of the model, or leave it out in a __getstate__ of the module and make it anew "
            "in __setstate__"
        ) from error
    result.eval()  # a `train` of the user's own, which freezes batch-norm, may return nothing
    return unwrapped(result)


def _not_copied(model: nn.Module) -> Iterator[str]:
    """The attributes that `deepcopy` refuses, by their names in the model."""
    for prefix, module in model.named_modules():
        for name, held in vars(module).items():
            if name not in OF_TORCH:
                try:
                    copy.deepcopy(held, without_history(model))
                except (TypeError, PicklingError):
                    yield f"{prefix}.{name}" if prefix else name


def unwrapped(model: nn.Module) -> nn.Module:
    """The model, without the mixed precision that Accelerate has put around its `forward`: an oracle has its own."""
    for module in model.modules():
        if (own := vars(module).pop("_original_forward", None)) is not None:
            module.forward = own
    return model


def without_history(model: nn.Module) -> dict[int, Any]:
    """What `deepcopy` is told to put in the places of tensors that were computed."""
    computed: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors(dict(vars(module))):
            if not tensor.is_leaf:
                computed[id(tensor)] = tensor.detach().clone()
    return computed


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping | list | tuple):
        for part in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors(part)
