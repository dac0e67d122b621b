"""Self-distillation: the batch as it is, and what the oracle thinks of other views of it in the loss."""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from infer2train.batches import logits_of
from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw
from infer2train.draws.losses import distillation
from infer2train.draws.methods.method import Method


@final
class SelfDistillation(Method):
    """Anchors, and γ other views of each that the oracle alone sees.

    Source: paper, section 3.2, equation 1.
    """

    def candidates(self, draw: Draw) -> Addresses:
        return draw.views(1, self.mining.gamma)

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        return draw

    def penalty(self, outputs: Any, draw: Draw) -> Float[Tensor, ""]:
        """λ·(1/γ)·Σ KL(F(x) ‖ F̃(T_i x)), a sequence's the mean of its own tokens; 0 where nothing was said."""
        if draw.log_probabilities is None:
            return super().penalty(outputs, draw)
        logits = logits_of(outputs)
        return self.mining.distill_weight * distillation(logits, draw.log_probabilities.to(logits.device))
