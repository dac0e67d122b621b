"""Gradients in the midst of an accumulated step: what a checkpoint taken there needs beside weights and optimiser."""

from collections.abc import Mapping

from torch import Tensor, nn


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the gradients that there are, under the names of their parameters.

    Example:
        >>> gradients_of(nn.Linear(2, 2))
        {}
    """
    gradients = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return {name: gradient.detach().clone() for name, gradient in gradients if gradient is not None}


def restore_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Put gradients back that `gradients_of` gave; others stay as they are."""
    parameters = dict(model.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name].device, copy=True)
