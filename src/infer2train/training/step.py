"""One step of the trainer: forward, loss, backward, update. What it learns on the way is added up for the epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from infer2train.batches import logits_of
from infer2train.draws.draw import Draw
from infer2train.draws.losses import distillation
from infer2train.training.setup import Run


@dataclass(kw_only=True)
class EpochSums:
    """Sums over the steps of an epoch; part of every checkpoint, so that a resumed epoch reports the same figures."""

    loss: float = 0.0
    wrong: int = 0
    examples: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, wrong: int, examples: int) -> None:
        """Add one step."""
        self.loss, self.wrong = self.loss + loss, self.wrong + wrong
        self.examples, self.steps = self.examples + examples, self.steps + 1

    def add_seconds(self, **seconds: float) -> None:
        """Add wall-clock to what it was spent on."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def reset(self) -> None:
        """Start the next epoch."""
        self.loss, self.wrong, self.examples, self.steps, self.seconds = 0.0, 0, 0, 0, {}

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "seconds": dict(self.seconds)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EpochSums":
        """The sums that `state_dict` gave."""
        return cls(**{**state, "seconds": dict(state["seconds"])})


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step saw, before its update."""

    loss: float
    penalty: float | None
    """λ·(1/γ)·Σ KL of equation 1; None where the method has none."""
    logits: Float[Tensor, "b k"]
    targets: Int64[Tensor, " b"]


def train_step(
    run: Run,
    images: Tensor,
    targets: Int64[Tensor, " b"],
    sums: EpochSums,
    saw: Callable[[StepResult], None] = lambda result: None,
) -> StepResult:
    """Train on one draw: minimise L + λ·penalty.

    Args:
        run: what is trained.
        images: of the draw.
        targets: their classes.
        sums: of the epoch, added to.
        saw: told of the step before it is acknowledged, and so before a row of it is written.
    """
    images, targets = images.to(run.device, non_blocking=True), targets.to(run.device, non_blocking=True)
    run.model.train()
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.config.precision == "bf16"):
        logits = logits_of(run.forward(images))
    logits = logits.float()
    penalty = run.loader.penalty(logits)
    loss = mean_loss(logits, targets, run.loader.last, run.config.label_smoothing) + penalty
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    loss = loss.detach()
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    said = float(penalty.detach()) if run.config.method == "self-distill" else None
    # A copy: a recorded graph writes the next draw's where this one's are.
    result = StepResult(loss=float(loss), penalty=said, logits=logits.detach().clone(), targets=targets)
    saw(result)
    run.loader.step_done()
    sums.add(result.loss, int((logits.argmax(dim=1) != targets).sum()), len(targets))
    return result


def mean_loss(
    logits: Float[Tensor, "b k"], targets: Int64[Tensor, " b"], draw: Draw | None, smoothing: float
) -> Float[Tensor, ""]:
    """Cross entropy over a draw, each example counted as its method says."""
    if draw is None or draw.weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    return (losses * draw.weights.to(losses.device)).mean()


def penalty_gradient_ratio(
    weight: float, draw: Draw, logits: Float[Tensor, "b k"], targets: Int64[Tensor, " b"], smoothing: float = 0.0
) -> float | None:
    """λ‖∇KL‖ / ‖∇L‖ with respect to the logits: how much the penalty of equation 1 has to say; None without one."""
    if draw.log_probabilities is None:
        return None
    logits = logits.detach().float().requires_grad_()
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets, label_smoothing=smoothing), logits)
    (penalty,) = torch.autograd.grad(weight * distillation(logits, draw.log_probabilities.to(logits.device)), logits)
    return float(penalty.norm() / plain.norm())
