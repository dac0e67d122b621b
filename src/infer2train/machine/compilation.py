"""Models as torch.compile makes them: the trainer's forward and backward pass, and float oracles.

What is compiled here is called beside the model itself and shares its weights, so names in checkpoints and records are
the model's. Shapes are fixed: were they made symbolic when a second one comes, as is torch's default, the bits would
depend on which came first, and a resumed run would not be the whole one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compiled(model: nn.Module, device: torch.device, remedy: str, mode: str = "default", whole: bool = False) -> Any:
    """The model as torch.compile makes it; built when it is first called with inputs of a shape.

    Args:
        model: its weights may be overwritten in place at any time, and are seen.
        device: of the model.
        remedy: what to do where nothing can be built; ends the error.
        mode: default or reduce-overhead (recorded CUDA graphs, whose next call overwrites what this one returned).
        whole: refuse a model that can only be compiled in parts, and more shapes than are kept.

    Raises:
        ValueError: there is nothing here to build with for this device.
    """
    _try(torch.compile(_twice, fullgraph=True), device, remedy)
    from torch._inductor import list_mode_options

    # Frozen constants would be silently stale once weights are overwritten, whatever the environment asks for.
    options = {**list_mode_options(mode), "freezing": False}
    return torch.compile(model, options=options, dynamic=False, fullgraph=whole)


def _twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x.sin()


def _try(function: Callable[[torch.Tensor], torch.Tensor], device: torch.device, remedy: str) -> None:
    """Build something small: who finds a compiler or not, and which, is torch's business."""
    try:
        function(torch.ones(2, device=device))
    except RuntimeError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            "torch.compile needs something to build with (on a CPU a C++ compiler and Python's headers, on CUDA "
            f"Triton): got {reason!r} on {device}; install it, for example g++ and python3-dev, or {remedy}"
        ) from error
