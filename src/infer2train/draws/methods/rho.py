"""RHO-LOSS: samples that can still be learned, by the loss over what a model that never saw them loses."""

from dataclasses import replace
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from infer2train.draws.draw import Draw
from infer2train.draws.methods.irreducible import WithIrreducible
from infer2train.draws.methods.samples import with_hardest


@final
class Rho(WithIrreducible):
    """nm-sample by another score: the oracle's loss minus the irreducible loss of each sample.

    What is noisy or ambiguous keeps a high loss in every model, and what is known has a low one already; what is left
    is what training can gain. The irreducible loss is that of a small model trained on data held out, given as
    `irreducible`: an array by sample id, the path of one (.npy), or the model, which is asked once, of one view each.

    Source: Mindermann et al. 2022, arXiv 2206.07137, equation 3.
    """

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        if scores is None:
            return self.as_samples.select(draw, None, targets)
        reducible = scores - self.irreducible(draw.candidates.ids).to(scores.device)
        return with_hardest(replace(draw, scores=reducible), reducible, targets, self.mining.balance)
