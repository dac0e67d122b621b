"""Counting the host's steps: by a hook on its optimiser, on its gradient scaler, or by its own word.

A step is an optimiser *attempt*. A gradient scaler that finds infinite gradients skips `optimizer.step()`, so that no
hook of the optimiser sees the attempt; with `scaler` given, its `step` is counted instead.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

import torch
from torch.optim import Optimizer


def acknowledge_steps(
    step_done: Callable[[], None], optimizer: Optimizer | None, scaler: "torch.amp.GradScaler | None"
) -> Callable[[], None]:
    """Have `step_done` called after each attempt of `optimizer`; nothing where none is given.

    Args:
        step_done: a method, whose object this does not keep alive: an optimiser that outlives it goes on uncounted.
        optimizer: whose steps are counted.
        scaler: what steps it, if anything does.

    Returns:
        What stops the counting.

    Raises:
        ValueError: a scaler without its optimiser.
    """
    count = _Count(step_done)
    if scaler is not None:
        if optimizer is None:
            raise ValueError("scaler needs the optimizer that it steps: got none; pass optimizer= too")
        _count_attempts(count, optimizer, scaler)
    elif optimizer is not None:
        optimizer.register_step_post_hook(count)
    return count.stop


class _Count:
    """Calls a method as long as its object lives and nobody stops it."""

    def __init__(self, step_done: Callable[[], None]) -> None:
        self._step_done = WeakMethod(step_done)
        self._is_stopped = False

    def __call__(self, *_: Any) -> None:
        step_done = self._step_done()
        if step_done is not None and not self._is_stopped:
            step_done()

    def stop(self) -> None:
        self._is_stopped = True


def _count_attempts(count: _Count, optimizer: Optimizer, scaler: "torch.amp.GradScaler") -> None:
    # GradScaler has no hooks; an instance attribute in front of its method leaves the class and its state alone.
    attempt = scaler.step

    def step(stepped: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = attempt(stepped, *args, **kwargs)
        if stepped is optimizer:
            count()
        return result

    scaler.__dict__["step"] = step
