"""The hardest of γ·B samples under class quotas, and others at random."""

from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infer2train.draws.addresses import Addresses, Purpose, seeds, uniforms
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method
from infer2train.draws.selection import Balance, fill, num_mined, pick_hardest


@final
class HardSamples(Method):
    """⌊r·B + ½⌋ of the hardest samples of the draw, the others at random; or all of them by chance, as the control.

    Source: paper, sections 3.1 and 5.1 (NM-sample).
    """

    def candidates(self, draw: Draw) -> Addresses:
        return draw.samples(self.mining.gamma * len(draw.ids))

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        num_candidates = self.mining.gamma * len(draw.ids)
        if not draw.kind.is_scored:  # the ramp mines nothing yet: what fills a batch needs no score
            offered, nothing = self.candidates(draw), torch.empty(0, dtype=torch.int64)
            return replace(draw, addresses=offered[filled(draw, nothing, num_candidates)])
        if self.choices.score == "uniform":
            chance = draw.numbers(uniforms, Purpose.UNIFORM_SCORE, np.arange(num_candidates))
            scores = torch.from_numpy(chance)
        assert scores is not None
        return with_hardest(draw, scores, targets, self.mining.balance)


def with_hardest(
    draw: Draw, scores: Float[Tensor, " n"], targets: Any, balance: Balance, last: Bool[Tensor, " n"] | None = None
) -> Draw:
    """The draw with the highest scores under class quotas, then others at random: B in all.

    Args:
        draw: with its candidates.
        scores: of them.
        targets: of them.
        balance: of classes among the hardest.
        last: those that fill it only where there are no others.

    Raises:
        ValueError: targets are no classes, or not one for each candidate.
    """
    count = num_mined(draw.share, len(draw.ids))
    classes = None if balance == "none" else class_targets(targets).to(scores.device)
    if classes is not None and len(classes) != len(scores):
        raise ValueError(
            f"every candidate needs a label: got {len(classes)} for {len(scores)}; a collate_fn must keep every sample"
        )

    def class_keys(labels: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
        return torch.from_numpy(draw.numbers(seeds, Purpose.CLASSES, labels.cpu().numpy())).to(labels.device)

    hardest = pick_hardest(scores, classes, count, balance=balance, class_keys=class_keys)
    chosen = filled(draw, hardest, len(scores), last)
    mined = np.arange(len(chosen)) < count
    return replace(draw, addresses=draw.candidates[chosen], chosen=chosen, mined=mined)


def filled(
    draw: Draw, hardest: Int64[Tensor, " m"], num_candidates: int, last: Bool[Tensor, " n"] | None = None
) -> Int64[np.ndarray, " b"]:
    """The hardest, and candidates at random behind them, some only where there are no others: B in all."""
    keys = torch.from_numpy(draw.numbers(seeds, Purpose.FILL, np.arange(num_candidates))).to(hardest.device)
    if last is not None:
        keys[last.to(keys.device)] = torch.iinfo(torch.int64).max
    return fill(hardest, num_candidates, len(draw.ids), keys).cpu().numpy()


def has_classes(targets: Any) -> bool:
    """Whether targets are class labels: whole numbers, one for each candidate."""
    return isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 1


def class_targets(targets: Any) -> Int64[Tensor, " n"]:
    """Targets as class labels.

    Raises:
        ValueError: they are not whole numbers, one for each candidate.
    """
    if not isinstance(targets, Tensor) or not has_classes(targets):
        got = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise ValueError(f"balance needs one class label (an integer) for each sample: got {got}; pass balance='none'")
    return targets.long()
