"""How fast the trainer trains here, at its best, and what a step consists of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infer2train.batches import logits_of
from infer2train.oracle.measurement import trained_copy

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class TrainerSpeed:
    """One way to train."""

    name: str
    images_per_second: float
    """Without the loader, in the fastest round."""
    step_seconds: float
    rounds: tuple[float, ...] = ()
    """Images per second, round by round."""


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """Seconds of the parts of a training step in fp32 (paper, section 2: on one device γ is about 3)."""

    forward: float
    """T_FF."""
    input_gradients: float
    """T_GI."""
    weight_gradients: float
    """T_GW."""


def training_ways(model: nn.Module, images: Tensor, targets: Tensor, *, compiled: bool) -> Iterator[tuple[str, Call]]:
    """A step in every way to train: eager and compiled, fp32 and bf16, channels first and last.

    Args:
        model: not changed.
        images: a batch, [b c h w].
        targets: its classes, [b].
        compiled: torch.compile too, which takes minutes.
    """
    for mode in ("eager", "compile") if compiled else ("eager",):
        for precision in ("fp32", "bf16"):
            for layout in (torch.contiguous_format, torch.channels_last):
                trained = trained_copy(model).to(memory_format=layout)  # type: ignore[call-overload]  # torch's types lack it
                batch = images.contiguous(memory_format=layout) if images.ndim == 4 else images
                step = _Step(trained, batch, targets, precision, mode == "compile")
                if mode == "compile":
                    step()  # it compiles once, which is no part of a step
                layout_name = "channels-last" if layout is torch.channels_last else "contiguous"
                yield f"{mode} {precision} {layout_name}", step


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


def step_calls(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Call]:
    """What the parts of a step are found from: a forward pass, one with the inputs' gradients, one with all."""
    frozen = trained_copy(model).requires_grad_(False)
    whole = trained_copy(model)
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

    return {"forward": forward, "with inputs": with_inputs, "with all": with_all}


def step_parts(forward: float, with_inputs: float, with_all: float) -> StepParts:
    """The parts, from the seconds of the calls that hold the first, the first two, and all three.

    Example:
        >>> step_parts(1.0, 3.0, 4.0)
        StepParts(forward=1.0, input_gradients=2.0, weight_gradients=1.0)
    """
    return StepParts(
        forward=forward,
        input_gradients=max(0.0, with_inputs - forward),
        weight_gradients=max(0.0, with_all - with_inputs),
    )
