"""What mining is compared with: the batch as it is, and every view of it."""

from dataclasses import replace
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method


@final
class Baseline(Method):
    """The batch as the user's loader gives it."""

    def candidates(self, draw: Draw) -> Addresses:
        return draw.views(0, 0)

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        return draw


@final
class AllViews(Method):
    """γ views of each sample, all trained on: γ times the work of a step.

    Source: Hoffer et al. 2019, arXiv 1901.09335.
    """

    def candidates(self, draw: Draw) -> Addresses:
        return draw.views(0, 0)

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        return replace(draw, addresses=draw.views(0, self.mining.gamma))
