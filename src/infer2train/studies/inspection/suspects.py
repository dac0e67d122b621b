"""Suspects: samples whose loss never falls. Many of them have a wrong label.

A sample's loss is what the oracle said of it whenever it was looked at: of the views that lost (the median), where
views were picked, since the picked one was picked for its loss. Late in a training a network has learned what is like
the rest; what it still does not believe is odd, mislabelled, or both.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from infer2train.observe.picks import Rows

LATE = 0.5
"""Only what was said after this part of the training counts."""


@dataclass(frozen=True)
class Suspects:
    """Samples by their loss late in the training, the highest first.

    Args:
        ids: of those that were looked at late.
        losses: of each, the mean (the score's unit: nats, where it is the loss).
        looks: how often each was looked at.
    """

    ids: Int64[np.ndarray, " n"]
    losses: Float32[np.ndarray, " n"]
    looks: Int64[np.ndarray, " n"]


def losses_of(rows: Rows, is_of_views: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, steps, losses): the loss of each sample as it is usually seen, whenever it was looked at.

    Args:
        rows: as `read_picks` gives them.
        is_of_views: whether views of a sample were picked, and not samples.
    """
    if not is_of_views:
        return rows["id"], rows["step"], rows["score"]
    trained = rows["is_trained"]
    median, score = rows["rival_median"][trained], rows["score"][trained]
    return rows["id"][trained], rows["step"][trained], np.where(np.isnan(median), score, median)


def suspects(rows: Rows, is_of_views: bool) -> Suspects:
    """Rank the samples of a run.

    Args:
        rows: as `read_picks` gives them.
        is_of_views: whether views of a sample were picked, and not samples.

    Source: a wrong label is learned last, or by heart: Arpit et al., arXiv 1706.05394; losses over the training to find
    it: Pleiss et al., arXiv 2001.10528.
    """
    ids, steps, losses = losses_of(rows, is_of_views)
    counts = np.isfinite(losses) & (steps >= LATE * (steps.max(initial=0) + 1))
    ids, place, looks = np.unique(ids[counts], return_inverse=True, return_counts=True)
    means = (np.bincount(place, weights=losses[counts]) / looks).astype(np.float32)
    order = np.argsort(-means, kind="stable")
    return Suspects(ids[order], means[order], looks[order])


def average_precision(is_wrong: np.ndarray) -> float:
    """Of a ranking, the area under its curve of precision over recall.

    Args:
        is_wrong: of each of the ranked, the first first.

    Example:
        >>> average_precision(np.array([True, False, True]))
        0.8333333333333333
    """
    found = np.cumsum(is_wrong)
    precision = found / np.arange(1, len(is_wrong) + 1)
    return float(precision[is_wrong.astype(bool)].mean())
