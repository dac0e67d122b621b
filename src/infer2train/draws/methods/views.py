"""One of γ views of each sample: what the oracle finds hardest, or what another pick says."""

from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infer2train.draws.addresses import Addresses, Purpose, seeds, uniforms
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Method
from infer2train.draws.selection import PICKS, num_mined


@final
class HardViews(Method):
    """The picked view for ⌊r·B + ½⌋ slots at random, the baseline's view for the others.

    Source: paper, sections 3.1 and 5.1 (NM-augment).
    """

    def candidates(self, draw: Draw) -> Addresses:
        return draw.views(0, self.mining.gamma)

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        if scores is None:  # the ramp mines nothing yet
            return draw
        batch, gamma = len(draw.ids), self.mining.gamma
        slot = np.arange(batch)
        chance = torch.from_numpy(draw.numbers(uniforms, Purpose.PICK, slot)).to(scores.device)
        mined = mined_slots(draw.numbers(seeds, Purpose.MINED_SLOTS, slot), draw.share)
        view = PICKS[self.choices.pick](scores.view(batch, gamma), chance).cpu().numpy()
        chosen = slot * gamma + view * mined
        return replace(draw, addresses=draw.candidates[chosen], chosen=chosen, mined=mined)


def mined_slots(keys: Int64[np.ndarray, " b"], share: float) -> Bool[np.ndarray, " b"]:
    """Which slots are mined at a share r of the ramp: the ⌊r·B + ½⌋ with the lowest keys."""
    ranks = keys.argsort(kind="stable").argsort(kind="stable")
    return ranks < num_mined(share, len(keys))
