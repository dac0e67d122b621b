"""Whether mining samples has collapsed: on one class after another, or into what makes the model worse.

Hard top-k of γ·B samples picks what the oracle knows least. Without class quotas that is one class, for as long as the
oracle keeps its weights, and then the next; without a ramp it is done before anything was learned; and where labels are
wrong, the hardest are the wrong ones. The run would go on without a word, at the error of guessing. So what is picked
is watched here, beside the pick. Nothing that is trained on depends on it.
"""

import warnings
from collections import deque
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

WINDOW = 20
"""Draws that are looked at together."""
FEWEST_PICKS = 16
"""Fewer picks of a draw are of few classes by chance."""
MOST_EXCESS = 0.5
"""Of the way from its share among the candidates to having all picks, how far the largest class may go."""
MOST_WORSE = 2.0
"""How many times its lowest the loss of candidates, a random sample of the data, may become."""
LEAST_CONTRAST, FIRST_DRAWS = 1.05, 100
"""The loss of the picks over that of the candidates, below which a model that has seen an epoch, and so many draws,
tells no sample from another."""


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """Of the class that has most of a draw's picks.

    Args:
        picked: picks of that class.
        picks: all picks.
        there: candidates of that class.
        candidates: all candidates.
    """

    picked: int
    picks: int
    there: int
    candidates: int

    @property
    def of_picks(self) -> float:
        """Its share of the picks."""
        return self.picked / self.picks

    @property
    def of_candidates(self) -> float:
        """Its share of the candidates."""
        return self.there / self.candidates

    @property
    def excess(self) -> float:
        """0 where the class is picked as often as it is there, 1 where nothing else is picked."""
        room = 1 - self.of_candidates
        return (self.of_picks - self.of_candidates) / room if room > 0 else 0.0


def largest_class(classes: Int64[Tensor, " n"], picked: Bool[Tensor, " n"]) -> ClassShare:
    """The class that most of the picked candidates are of.

    Args:
        classes: of all candidates.
        picked: which of them were picked for their score, at least one.

    Example:
        >>> largest_class(torch.tensor([0, 0, 1, 1]), torch.tensor([False, False, True, True]))
        ClassShare(picked=2, picks=2, there=2, candidates=4)
    """
    kinds, index = torch.unique(classes, return_inverse=True)
    counts = torch.bincount(index[picked], minlength=len(kinds))
    largest = int(counts.argmax())
    return ClassShare(
        picked=int(counts[largest]),
        picks=int(counts.sum()),
        there=int((index == largest).sum()),
        candidates=len(classes),
    )


class CollapseWatch:
    """Looks at every mined draw, in order, and warns once of each way to collapse.

    Args:
        remedy: what the run could do that it does not.
        is_loss: whether scores are losses, which go down as a model learns.
    """

    def __init__(self, remedy: str, *, is_loss: bool) -> None:
        self._remedy, self._is_loss = remedy, is_loss
        self._excess: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._picked: deque[float] = deque(maxlen=WINDOW)
        self._lowest, self._draws = float("inf"), 0
        self._warned: set[str] = set()

    def see_classes(self, share: ClassShare) -> None:
        """Take in the classes of one draw's picks."""
        if share.picks < FEWEST_PICKS:
            return
        self._excess.append(share.excess)
        if len(self._excess) == WINDOW and fmean(self._excess) > MOST_EXCESS:
            self._warn(
                "class",
                f"over {WINDOW} draws most of what is picked was of one class at a time (now {share.of_picks:.0%} of "
                f"the picks, {share.of_candidates:.0%} of the candidates)",
            )

    def see_scores(self, scores: Float[Tensor, " n"], picked: Bool[Tensor, " n"], epoch: int) -> None:
        """Take in the scores of one draw's candidates, and which of them were picked."""
        finite = scores.isfinite()
        if not self._is_loss or not bool((finite & picked).any()):
            return
        self._draws += 1
        self._losses.append(float(scores[finite].mean()))
        self._picked.append(float(scores[finite & picked].mean()))
        if len(self._losses) < WINDOW:
            return
        mean, mean_picked = fmean(self._losses), fmean(self._picked)
        self._lowest = min(self._lowest, mean)
        if mean > MOST_WORSE * self._lowest:
            self._warn(
                "loss",
                "the loss of the candidates, which are a random sample of the data, has gone up from "
                f"{self._lowest:.3g} to {mean:.3g}: training on what is picked makes the model worse",
            )
        if epoch > 0 and self._draws >= FIRST_DRAWS and mean_picked < LEAST_CONTRAST * mean:
            self._warn(
                "contrast",
                f"after {self._draws} draws the hardest candidates have a loss of {mean_picked:.3g} where the mean is "
                f"{mean:.3g}: the model tells no sample from another",
            )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"mining has collapsed: {message}; {self._remedy}", RuntimeWarning)
