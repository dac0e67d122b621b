"""Parts of a draw: what of it this rank looks at, and what of it this rank trains on.

Between a draw, which is the same on every rank, and the pool and the trainer's views, which are the rank's own. Slots
are dealt out in turn, so that two ranks differ by one example at most. A draw of a run with one rank is its own part.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from infer2train.draws.addresses import Addresses
from infer2train.draws.draw import Draw
from infer2train.draws.methods.method import Choices
from infer2train.draws.methods.samples import has_classes
from infer2train.loader.ranks import Ranks
from infer2train.oracle.scorer import Scores


class Parts:
    """Divides draws among the ranks of a run, and puts together what they found.

    Args:
        ranks: of the run.
        choices: the method's.
        chunk: candidates that an oracle scores at a time.
    """

    def __init__(self, ranks: Ranks, choices: Choices, chunk: int) -> None:
        self._ranks, self._chunk = ranks, chunk
        self._is_divided = ranks.world > 1
        self.is_gathered = self._is_divided and choices.candidates in ("samples", "one-view")
        """Whether a pick needs what all ranks found: those of views are made within a slot."""

    def looked_at(self, draw: Draw) -> Addresses:
        """The candidates that this rank's oracle looks at."""
        return draw.candidates[self._rows(draw, self._ranks.rank)] if self._is_divided else draw.candidates

    def slots(self, draw: Draw) -> int:
        """Slots of the user's batch that are this rank's."""
        return len(self._ranks.own(len(draw.ids)))

    def are_ready(self, is_ready: bool) -> bool:
        """Whether a draw is ready here and, where all ranks are needed for its pick, everywhere."""
        return self._ranks.do_all(is_ready) if self.is_gathered else is_ready

    def whole(self, draw: Draw, found: Scores | None) -> Scores:
        """What is known of all candidates of a draw, on every rank where picks need that.

        Args:
            draw: that was looked at.
            found: of this rank's candidates; None where it has none.
        """
        if self.is_gathered:
            return self._gathered(draw, found)
        assert found is not None
        if not self._is_divided:
            return found
        return replace(
            found,
            values=_spread(found.values, self._rows(draw, self._ranks.rank), len(draw.candidates)),
            log_probabilities=_spread(found.log_probabilities, self._ranks.own(len(draw.ids)), len(draw.ids)),
        )

    def own(self, draw: Draw) -> Draw:
        """What this rank trains on of a picked draw; `chosen` tells its places among the candidates that it knows."""
        if not self._is_divided:
            return draw
        slots = self._ranks.own(len(draw.ids))
        fields = {"ids": draw.ids[slots], **self._trained_on(draw)}
        if not self.is_gathered:
            rows = self._rows(draw, self._ranks.rank)
            fields |= {"candidates": draw.candidates[rows], "scores": _at(draw.scores, rows)}
            fields["log_probabilities"] = _at(draw.log_probabilities, slots)
            if fields["chosen"] is not None:
                fields["chosen"] = np.searchsorted(rows, fields["chosen"])
        return replace(draw, **fields)

    def _trained_on(self, draw: Draw) -> dict[str, Any]:
        count = len(draw.addresses)
        rows, weights = self._ranks.own(count, max(1, count // len(draw.ids))), draw.weights
        if weights is not None and len(rows) == 0:
            rows, weights = np.zeros(1, dtype=np.int64), torch.zeros_like(weights)  # every rank takes its step
        if weights is not None:
            weights = weights[rows] * (len(rows) * self._ranks.world / count)  # in DDP's mean, ranks count alike
        return {
            "addresses": draw.addresses[rows],
            "chosen": _at(draw.chosen, rows),
            "mined": _at(draw.mined, rows),
            "weights": weights,
        }

    def _rows(self, draw: Draw, rank: int) -> Int64[np.ndarray, " n"]:
        """Places of a rank's candidates in the draw's list: whole chunks of it, or all views of the rank's slots."""
        count = len(draw.candidates)
        return self._ranks.owned(rank, count, self._chunk if self.is_gathered else max(1, count // len(draw.ids)))

    def _gathered(self, draw: Draw, found: Scores | None) -> Scores:
        """Scores and class labels of every rank's candidates."""
        rows = [self._rows(draw, rank) for rank in range(self._ranks.world)]
        longest = len(rows[0])
        sent = np.zeros((2, 1 + longest), dtype=np.int64)
        if found is not None:
            _write(sent[0], None if found.values is None else found.values.double().view(torch.int64))
            _write(sent[1], found.targets.long() if has_classes(found.targets) else None)
        everyone = [one.reshape(sent.shape) for one in self._ranks.of_all(sent.reshape(-1), sent.size)]
        scores, labels = np.zeros((2, len(draw.candidates)), dtype=np.int64)
        for at, one in zip(rows, everyone, strict=True):
            scores[at], labels[at] = one[:, 1 : 1 + len(at)]
        has_scores, has_labels = everyone[0][:, 0]  # rank 0 always has the first chunk
        return Scores(
            targets=torch.from_numpy(labels) if has_labels else None,
            values=torch.from_numpy(scores).view(torch.float64).float() if has_scores else None,
            log_probabilities=None,
        )


def _at(values: Any, rows: Int64[np.ndarray, " n"]) -> Any:
    return None if values is None else values[rows]


def _spread(values: Tensor | None, rows: Int64[np.ndarray, " m"], count: int) -> Tensor | None:
    """Values at their places among so many; NaN at the others, which nobody looks at."""
    if values is None:
        return None
    spread = values.new_full((count, *values.shape[1:]), torch.nan)
    spread[rows] = values
    return spread


def _write(row: Int64[np.ndarray, " n"], values: Tensor | None) -> None:
    """Values behind a 1; nothing behind a 0."""
    if values is not None:
        row[0], row[1 : 1 + len(values)] = 1, values.cpu().numpy()
