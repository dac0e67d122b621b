"""Counting the host's steps: by a hook on its optimiser, on its gradient scaler, or by its own word.

A step is an optimiser *attempt*. A gradient scaler that finds infinite gradients skips `optimizer.step()`, so that no
hook of the optimiser sees the attempt; with `scaler` given, its `step` is counted instead. Where more than one
optimiser trains the model, no hook knows which is the last of a step: the step is then due, and counted when the next
draw is asked for.

One loader counts an optimiser's steps: a cell that calls `mine()` is run again while a traceback, or the output of the
cell, still holds the loader that it made before.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from infer2train.loader.sharding import own_shard

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
    """The gradient scaler that steps an optimiser which a host has wrapped (Accelerate, Fabric), if there is one."""
    parts = given if isinstance(given, list | tuple) else [given]
    holders = [
        holder for part in parts for holder in (part, getattr(getattr(part, "_strategy", None), "precision", None))
    ]
    scalers = (getattr(holder, "scaler", None) for holder in holders)
    return next((scaler for scaler in scalers if isinstance(scaler, torch.amp.GradScaler)), None)


def untouched(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of the parameters that are trained, but by none of these optimisers."""
    stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in stepped]


def acknowledge_steps(
    step: Callable[[], None],
    close: Callable[[], None],
    optimizers: Sequence[Optimizer],
    scaler: "torch.amp.GradScaler | None",
) -> Callable[[], None]:
    """Have `step` called after each attempt of one of `optimizers`; nothing where none is given.

    Args:
        step: a method, whose object this does not keep alive: an optimiser that outlives it goes on uncounted.
        close: a method of the same object, called when another one is to count the steps of one of these optimisers.
        optimizers: whose steps are counted, from `optimizers_of`.
        scaler: what steps them, if anything does.

    Returns:
        What stops the counting.

    Raises:
        ValueError: a scaler without its optimiser.
    """
    if scaler is not None and not optimizers:
        raise ValueError("scaler needs the optimizer that it steps: got none; pass optimizer= too")
    for optimizer in optimizers:
        if (earlier := _COUNTS.get(optimizer)) is not None:
            earlier.give_way()
    count = _Count(step, close)
    if scaler is not None:
        count.undo.append(_count_attempts(count, optimizers, scaler))
    for optimizer in optimizers:
        _COUNTS[optimizer] = count
        if scaler is None:
            count.undo.append(optimizer.register_step_post_hook(count).remove)
    return count.stop


class Pace:
    """Which draws a host left out: those that were followed by the next one without a step in between.

    A host that fetches ahead asks for the next draw before it trains, too. But then it always does; so once a host was
    seen to have finished all its steps when it asked for a draw, one step that is missing at a later draw was skipped
    (a loss that was not finite, say). With a delay a host may fetch ahead, in a thread of its own too, which is in time
    now and then; so it must not have been seen ahead before, from the first draw on.
    """

    is_one_by_one = False
    """Whether the host was seen to train on each draw before it asks for the next."""

    def __init__(self) -> None:
        self._in_time, self._was_ahead = 0, False

    def has_skipped(self, due: int, done: int, *, delay_steps: int = 0) -> bool:
        """Whether the host, which asks for a draw, has left out the step before it.

        Args:
            due: steps of this epoch whose draws are all handed out.
            done: steps of it that were acknowledged.
            delay_steps: that a host may be ahead.
        """
        if due > 0 and done == due:
            self._in_time += 1
            self.is_one_by_one |= delay_steps == 0 or (not self._was_ahead and self._in_time > delay_steps)
        elif done < due:
            self._was_ahead = True
        return self.is_one_by_one and done == due - 1

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"is_one_by_one": self.is_one_by_one, "in_time": self._in_time, "was_ahead": self._was_ahead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.is_one_by_one, self._in_time, self._was_ahead = (
            state[name] for name in ("is_one_by_one", "in_time", "was_ahead")
        )


class _Count:
    """Calls a method as long as its object lives and nobody stops it."""

    def __init__(self, step: Callable[[], None], close: Callable[[], None]) -> None:
        self._step, self._close = WeakMethod(step), WeakMethod(close)
        self._is_stopped = False
        self.undo: list[Callable[[], None]] = []

    def __call__(self, optimizer: Optimizer | None = None, *_: Any) -> None:
        step = self._step()
        if step is None or self._is_stopped or (optimizer is not None and _only_makes_state(optimizer)):
            return
        step()

    def stop(self) -> None:
        self._is_stopped = True  # and no more: an optimiser's hooks may be running

    def give_way(self) -> None:
        if (close := self._close()) is not None:
            close()
        self.stop()
        while self.undo:
            self.undo.pop()()


def _only_makes_state(optimizer: Optimizer) -> bool:
    """Whether a step was none of training, but one by which `torch.distributed.checkpoint` has an optimiser make its
    state: with a learning rate of 0, and gradients of 0."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    # Its rate is a number or on the CPU; to look at one on another device would wait for that in each step.
    if any(rate is None or (isinstance(rate, Tensor) and rate.device.type != "cpu") or rate != 0 for rate in rates):
        return False
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # It makes gradients first; a loop that has none, at a rate of 0, has stepped by itself.
    return bool(gradients) and not any(bool(own_shard(gradient).any()) for gradient in gradients)


_COUNTS: "WeakKeyDictionary[Optimizer, _Count]" = WeakKeyDictionary()
"""Who counts an optimiser's steps, or did last."""


class _CountedStep:
    """A scaler's `step`, counted. In a copy of the scaler, or one that was stored, it is the copy's own, uncounted."""

    def __init__(self, count: _Count, optimizers: Sequence[Optimizer], scaler: "torch.amp.GradScaler") -> None:
        self._count, self._optimizers, self._scaler, self._attempt = count, optimizers, scaler, scaler.step

    def __call__(self, stepped: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        result = self._attempt(stepped, *args, **kwargs)
        if any(stepped is optimizer for optimizer in self._optimizers):
            self._count()
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._scaler, "step")  # looked up before the copy has any attributes: its class's


def _count_attempts(
    count: _Count, optimizers: Sequence[Optimizer], scaler: "torch.amp.GradScaler"
) -> Callable[[], None]:
    # GradScaler has no hooks; an instance attribute in front of its method leaves the class and its state alone.
    step = _CountedStep(count, optimizers, scaler)

    def undo() -> None:
        if scaler.__dict__.get("step") is step:
            del scaler.__dict__["step"]

    scaler.__dict__["step"] = step
    return undo
