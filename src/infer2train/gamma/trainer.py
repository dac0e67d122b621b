"""How fast the trainer trains here, at its best, and what a step consists of."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.batches import logits_of
from infer2train.oracle.measurement import timed

STEP_SECONDS = 2.0
"""Time in which one way to train is measured."""
HOPELESS = 4.0
"""A way whose first step takes this many times as long as the best one's step is not measured further."""


@dataclass(frozen=True, kw_only=True)
class TrainerSpeed:
    """One way to train."""

    name: str
    images_per_second: float
    """Without the loader."""
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """Seconds of the parts of a training step in fp32 (paper, section 2: on one device γ is about 3)."""

    forward: float
    """T_FF."""
    input_gradients: float
    """T_GI."""
    weight_gradients: float
    """T_GW."""


def training_speeds(model: nn.Module, images: Tensor, targets: Tensor, *, compiled: bool) -> Iterator[TrainerSpeed]:
    """Time a step in every way to train: eager and compiled, fp32 and bf16, channels first and last.

    Args:
        model: not changed.
        images: a batch, [b c h w].
        targets: its classes, [b].
        compiled: try torch.compile too, which takes minutes.
    """
    best = math.inf
    for mode in ("eager", "compile") if compiled else ("eager",):
        for precision in ("fp32", "bf16"):
            for layout in (torch.contiguous_format, torch.channels_last):
                trained = copy.deepcopy(model).train().to(memory_format=layout)  # type: ignore[call-overload]
                batch = images.contiguous(memory_format=layout) if images.ndim == 4 else images
                step = _Step(trained, batch, targets, precision, mode == "compile")
                # A CPU without bf16 takes ten times as long for it; compiling takes long too, but only once.
                hopeless = HOPELESS * best if mode == "eager" else math.inf
                seconds = timed(step, STEP_SECONDS, hopeless_seconds=hopeless)
                best = min(best, seconds)
                layout_name = "channels-last" if layout is torch.channels_last else "contiguous"
                yield TrainerSpeed(
                    name=f"{mode} {precision} {layout_name}",
                    images_per_second=len(images) / seconds,
                    step_seconds=seconds,
                )


class _Step:
    """One training step on always the same batch."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor, precision: str, compiled: bool) -> None:
        self._forward = torch.compile(model) if compiled else model
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self._images, self._targets, self._bf16 = images, targets, precision == "bf16"

    def __call__(self) -> None:
        with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._bf16):
            outputs = self._forward(self._images)
        loss = F.cross_entropy(logits_of(outputs).float(), self._targets)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad()


def step_parts(model: nn.Module, images: Tensor, targets: Tensor) -> StepParts:
    """Forward, gradients of inputs, gradients of weights: the last two by leaving out the one or the other."""
    frozen = copy.deepcopy(model).train().requires_grad_(False)
    whole = copy.deepcopy(model).train()
    pixels = images.float()

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(network(batch)).float(), targets)

    def forward() -> None:
        with torch.no_grad():
            loss(frozen, pixels)

    def with_inputs() -> None:
        torch.autograd.backward(loss(frozen, pixels.detach().requires_grad_()))

    def with_all() -> None:
        torch.autograd.backward(loss(whole, pixels.detach().requires_grad_()))
        whole.zero_grad()

    first, second, third = (timed(call, STEP_SECONDS / 2) for call in (forward, with_inputs, with_all))
    return StepParts(forward=first, input_gradients=max(0.0, second - first), weight_gradients=max(0.0, third - second))
