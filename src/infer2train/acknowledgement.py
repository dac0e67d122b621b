"""Counting the host's steps: by a hook on its optimiser, on its gradient scaler, or by its own word.

A step is an optimiser *attempt*. A gradient scaler that finds infinite gradients skips `optimizer.step()`, so that no
hook of the optimiser sees the attempt; with `scaler` given, its `step` is counted instead.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


def acknowledge_steps(
    step_done: Callable[[], None], optimizer: Optimizer | None, scaler: "torch.amp.GradScaler | None"
) -> None:
    """Have `step_done` called after each attempt of `optimizer`; nothing where none is given.

    Raises:
        ValueError: a scaler without its optimiser.
    """
    if scaler is not None:
        if optimizer is None:
            raise ValueError("scaler needs the optimizer that it steps: got none; pass optimizer= too")
        _count_attempts(step_done, optimizer, scaler)
    elif optimizer is not None:
        optimizer.register_step_post_hook(lambda *_: step_done())


def _count_attempts(step_done: Callable[[], None], optimizer: Optimizer, scaler: "torch.amp.GradScaler") -> None:
    # GradScaler has no hooks; an instance attribute in front of its method leaves the class and its state alone.
    attempt = scaler.step

    def step(stepped: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = attempt(stepped, *args, **kwargs)
        if stepped is optimizer:
            step_done()
        return result

    scaler.step = step  # type: ignore[method-assign, assignment]
