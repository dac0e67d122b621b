"""InfoBatch: leave out some of what the model knows already, and let the rest of it count more."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infer2train.draws.addresses import Addresses, Purpose, uniforms
from infer2train.draws.draw import Draw
from infer2train.draws.methods.memory import Memory
from infer2train.draws.methods.method import Choices, Method
from infer2train.draws.mining import Mining

LAST_PART = 0.875
"""Of the training (δ), after which nothing is left out, so that no sample is trained on less than the others."""


@final
class InfoBatch(Method):
    """Of each batch, samples whose loss is below the mean are left out with probability r = `prune`; those of them that
    stay count 1/(1 − r). The mean is over every sample's last loss, as of the end of the epoch before.

    Batches become smaller, and their weighted loss, `(losses * loader.last.weights).mean()`, has the expectation of the
    whole batch's mean. Where one sample would be left of several, a second one stays and counts nothing. Deviates from
    its source, where losses are the trainer's own of the epoch before: here the oracle says what the loss of each
    sample is now, and so the trainer's need not be gathered.

    Source: Qin et al. 2023, arXiv 2303.04947, section 3.
    """

    def __init__(self, mining: Mining, choices: Choices) -> None:
        super().__init__(mining, choices)
        if mining.epochs is None:
            raise ValueError(
                f"infobatch needs epochs=, the length of the training, to end with whole batches: got none; pass the "
                f"number, of which the last {1 - LAST_PART:.1%} leave nothing out"
            )
        self._last_epoch = LAST_PART * mining.epochs
        self._losses, self._mean = Memory(), float("nan")
        self._trained, self._seen = 0, 0

    def share(self, epoch: int) -> float:
        return float(epoch < self._last_epoch)

    def candidates(self, draw: Draw) -> Addresses:
        return draw.views(0, 1)

    def select(self, draw: Draw, scores: Float[Tensor, " n"] | None, targets: Any) -> Draw:
        if scores is None:
            return draw
        chance = torch.from_numpy(draw.numbers(uniforms, Purpose.PRUNE, np.arange(len(scores))))
        is_easy = scores.cpu() < self._mean  # of NaN, nothing is
        finite = scores.isfinite().cpu()
        kept = (~is_easy | (chance >= self.mining.prune)) & (finite | ~finite.any())
        counts = torch.where(is_easy, 1 / (1 - self.mining.prune), 1.0) * kept
        if not bool(kept.any()):
            kept = torch.ones_like(kept)  # a batch must have something in it; none of it counts
        elif int(kept.sum()) == 1 and bool((dropped := finite & ~kept).any()):
            # Batch normalisation needs a second sample, which does not count.
            kept[torch.where(dropped, chance, torch.inf).argmin()] = True
        chosen = kept.nonzero().flatten().numpy()
        return replace(
            draw,
            addresses=draw.candidates[chosen],
            chosen=chosen,
            mined=(~is_easy[kept]).numpy(),
            weights=(counts[kept] * len(chosen) / len(scores)).float(),
        )

    def begin_epoch(self, epoch: int) -> None:
        mean = self._losses.mean()
        self._mean = float("nan") if mean is None else mean

    def observe(self, draw: Draw) -> None:
        if draw.scores is not None:
            self._losses.write(torch.from_numpy(draw.candidates.ids), draw.scores.cpu().float())
            self._trained, self._seen = self._trained + len(draw.addresses), self._seen + len(draw.ids)

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self._losses.values.clone(),
            "mean": self._mean,
            "trained": self._trained,
            "seen": self._seen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses, self._mean = Memory(state["losses"].clone()), state["mean"]
        self._trained, self._seen = state["trained"], state["seen"]

    def metrics(self) -> dict[str, float]:
        return {"pruned_share": 1 - self._trained / self._seen} if self._seen else {}
