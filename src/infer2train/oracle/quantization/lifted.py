"""A model as a function of its tensors: what torch.export makes a graph of, and what it leaves out of the outputs."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infer2train.batches import map_leaves, tensors_of


class Lifted(nn.Module):
    """(tensors, inputs) -> the tensors of the model's outputs, in order.

    Args:
        model: in evaluation mode.
        names: of the tensors, as the model has them.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self._model = (model,)  # not as a submodule, whose weights would become constants
        self._names = names
        parameters = inspect.signature(model.forward).parameters
        self._always = {"use_cache": False} if "use_cache" in parameters else {}

    def forward(self, tensors: tuple[Tensor, ...], inputs: Any) -> tuple[Tensor, ...]:
        return tuple(tensors_of(self.outputs(tensors, inputs)))

    def outputs(self, tensors: tuple[Tensor, ...], inputs: Any) -> Any:
        """The model's outputs in their own structure, with None for what holds nothing that a score could read."""
        (model,), state = self._model, dict(zip(self._names, tensors, strict=True))
        named = inputs if isinstance(inputs, dict) else {}
        given = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
        with _without_caches(model):
            outputs = torch.func.functional_call(model, state, given, {**self._always, **named})
        return map_leaves(lambda leaf: leaf if isinstance(leaf, Tensor | int | float | str) else None, outputs)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the model, but for what counts batches, which nothing reads."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach() for name, tensor in own.items() if not name.endswith("num_batches_tracked")}


@contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Language models keep keys and values for the next token unless told not to, in containers of their own."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    told = [config for config in configs.values() if getattr(config, "use_cache", None) is True]
    for config in told:
        config.use_cache = False
    try:
        yield
    finally:
        for config in told:
            config.use_cache = True
