"""Samples whose label a model believes that never saw them, and among those the likelier the harder."""

import math
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infer2train.draws.addresses import Addresses, Purpose, seeds, uniforms
from infer2train.draws.draw import Draw
from infer2train.draws.methods.irreducible import WithIrreducible
from infer2train.draws.methods.method import Choices, Read
from infer2train.draws.methods.samples import filled, has_classes, with_hardest
from infer2train.draws.mining import Mining
from infer2train.draws.selection import require_probable

TINY = 1e-30
"""Of scores, the least that counts."""
LABELS, CHUNK = 1024, 64
"""Samples, taken at random, whose greatest label says how many classes there are; and how many are read at a time."""


@final
class Trusted(WithIrreducible):
    """Of γ·B samples, B of those whose irreducible loss is at most `trust`; the others only where there are no more.

    A label that a model trained on other data finds less likely than guessing would is more often wrong than hard. Of
    the samples that are left, hard top-k would take what is wrong all the same, so each is drawn with a probability
    that grows with its score: without replacement, by the largest of ln(score) + Gumbel noise. With the score `uniform`
    (`trusted-random`, the control) all are equally likely, and no oracle is asked.

    Source: ours, after Northcutt et al. 2021, arXiv 1911.00068 (labels are judged by a model that did not train on
    them), and Kool et al. 2019, arXiv 1903.06059 (Gumbel top-k).
    """

    def __init__(self, mining: Mining, choices: Choices) -> None:
        super().__init__(mining, choices)
        self._limit = math.inf if mining.trust is None else mining.trust

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        if not draw.kind.is_scored:
            offered, nothing = self.candidates(draw), torch.empty(0, dtype=torch.int64)
            doubted = self.irreducible(offered.ids) > self._limit
            return replace(draw, addresses=offered[filled(draw, nothing, len(offered), last=doubted)])
        chance = torch.from_numpy(draw.numbers(uniforms, Purpose.UNIFORM_SCORE, np.arange(len(draw.candidates))))
        keys = -(-chance.double().log()).log()
        if scores is not None:
            weight = scores.cpu().double()
            require_probable(weight[weight.isfinite()], "trusted", "add a constant to your own")
            keys = keys + weight.clamp(min=TINY).log()  # a score of 0 too stands before what is not believed
            keys[~weight.isfinite()] = -torch.inf
        doubted = self.irreducible(draw.candidates.ids) > self._limit
        keys[doubted] = -torch.inf
        return with_hardest(draw, keys.float(), targets, self.mining.balance, last=doubted)

    def survey(self, read: Read, ids: Int64[np.ndarray, " n"]) -> None:
        super().survey(read, ids)
        if self.mining.trust is None:
            chance = uniforms(self.mining.seed, Purpose.IRREDUCIBLE, epoch=1, slot=np.arange(len(ids)))
            self._limit = math.log(self._classes(read, ids[np.argsort(chance, kind="stable")[:LABELS]]))

    def _classes(self, read: Read, ids: Int64[np.ndarray, " n"]) -> int:
        """How many classes there are, numbered from 0."""
        greatest = 0
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            _, targets = read(Addresses(part, seeds(self.mining.seed, Purpose.IRREDUCIBLE, slot=np.arange(len(part)))))
            if not has_classes(targets):
                raise ValueError(
                    f"{self.mining.method} takes a label for wrong that is less likely than guessing: it needs class "
                    f"labels, got {type(targets).__name__}; pass trust=, the greatest irreducible loss of a right one"
                )
            greatest = max(greatest, int(targets.max()))
        return 1 + greatest

    def metrics(self) -> dict[str, float]:
        known = self._irreducible.values
        return super().metrics() | {"trusted_share": float((known[known.isfinite()] <= self._limit).float().mean())}
