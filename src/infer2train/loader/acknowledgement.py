"""Counting the host's steps: by a hook on its optimiser, on its gradient scaler, or by its own word.

A step is an optimiser *attempt*. A gradient scaler that finds infinite gradients skips `optimizer.step()`, so that no
hook of the optimiser sees the attempt; with `scaler` given, its `step` is counted instead. Where more than one
optimiser trains the model, no hook knows which is the last of a step: the step is then due, and counted when the next
draw is asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakMethod

import torch
from torch import nn
from torch.optim import Optimizer

Optimizers = Optimizer | Sequence[Optimizer]


def optimizers_of(given: Any) -> list[Optimizer]:
    """The optimisers themselves: what a host has wrapped (Accelerate's, say) is unwrapped, nothing gives none.

    Raises:
        ValueError: something among them is no optimiser of torch's.
    """
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return [optimizer for part in given for optimizer in optimizers_of(part)]
    found = given
    while isinstance(inner := getattr(found, "optimizer", None), Optimizer):  # the wrapper's own hooks never ran
        found = inner
    if not isinstance(found, Optimizer):
        raise ValueError(
            f"optimizer must be a torch optimizer, or a list of them: got {type(given).__name__}; leave it out and "
            "call loader.step_done() after each step"
        )
    return [found]


def scaler_of(given: Any) -> "torch.amp.GradScaler | None":
    """The gradient scaler that steps an optimiser which a host has wrapped (Accelerate's, say), if there is one."""
    parts = given if isinstance(given, list | tuple) else [given]
    scalers = (getattr(part, "scaler", None) for part in parts)
    return next((scaler for scaler in scalers if isinstance(scaler, torch.amp.GradScaler)), None)


def untouched(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of the parameters that are trained, but by none of these optimisers."""
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in stepped]


def acknowledge_steps(
    step: Callable[[], None], optimizers: Sequence[Optimizer], scaler: "torch.amp.GradScaler | None"
) -> Callable[[], None]:
    """Have `step` called after each attempt of one of `optimizers`; nothing where none is given.

    Args:
        step: a method, whose object this does not keep alive: an optimiser that outlives it goes on uncounted.
        optimizers: whose steps are counted, from `optimizers_of`.
        scaler: what steps them, if anything does.

    Returns:
        What stops the counting.

    Raises:
        ValueError: a scaler without its optimiser.
    """
    count = _Count(step)
    if scaler is not None:
        if not optimizers:
            raise ValueError("scaler needs the optimizer that it steps: got none; pass optimizer= too")
        _count_attempts(count, optimizers, scaler)
        return count.stop
    for optimizer in optimizers:
        optimizer.register_step_post_hook(count)
    return count.stop


class Pace:
    """Which draws a host left out: those that were followed by the next one without a step in between.

    A host that fetches ahead asks for the next draw before it trains, too. But then it always does; so once a host was
    seen to have finished all its steps when it asked for a draw, one step that is missing at a later draw was skipped
    (a loss that was not finite, say).
    """

    is_one_by_one = False
    """Whether the host was seen to train on each draw before it asks for the next."""

    def has_skipped(self, due: int, done: int) -> bool:
        """Whether the host, which asks for a draw, has left out the step before it.

        Args:
            due: steps of this epoch whose draws are all handed out.
            done: steps of it that were acknowledged.
        """
        if due > 0 and done == due:
            self.is_one_by_one = True
        return self.is_one_by_one and done == due - 1


class _Count:
    """Calls a method as long as its object lives and nobody stops it."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = WeakMethod(step)
        self._is_stopped = False

    def __call__(self, *_: Any) -> None:
        step = self._step()
        if step is not None and not self._is_stopped:
            step()

    def stop(self) -> None:
        self._is_stopped = True


def _count_attempts(count: _Count, optimizers: Sequence[Optimizer], scaler: "torch.amp.GradScaler") -> None:
    # GradScaler has no hooks; an instance attribute in front of its method leaves the class and its state alone.
    attempt = scaler.step

    def step(stepped: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = attempt(stepped, *args, **kwargs)
        if any(stepped is optimizer for optimizer in optimizers):
            count()
        return result

    scaler.__dict__["step"] = step
