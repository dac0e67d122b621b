"""What the picks of a run say: how they are spread over samples and classes, and which were the most extreme."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from infer2train.observe.picks import Rows

TOP = 0.01
"""The samples that are picked most, and the picks of the highest scores (a share)."""
CONCENTRATED = 0.2
"""Share of all picks from which those samples are too many."""
BUCKETS = 12
"""Parts of the training in which a sample's loss is averaged."""


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """One class: its share of the data, and of what was picked."""

    label: int
    of_data: float
    of_picks: float


def class_shares(rows: Rows, labels: Mapping[int, int]) -> list[ClassShare]:
    """How often each class was picked against its share of the data, the most over-picked first.

    Args:
        rows: of the run.
        labels: class by id; picks of other ids are left out.

    Example:
        >>> rows = {"id": np.array([1, 1, 1, 0]), "is_picked": np.ones(4, dtype=bool)}
        >>> class_shares(rows, {0: 0, 1: 1})[0]
        ClassShare(label=1, of_data=0.5, of_picks=0.75)
    """
    if not labels:
        return []
    ids, classes = np.array(sorted(labels.items()), dtype=np.int64).T
    there = np.bincount(classes)
    place, is_known = _places(rows["id"][rows["is_picked"]], ids)
    counts = np.bincount(classes[place[is_known]], minlength=len(there))
    shares = [
        ClassShare(
            label=label,
            of_data=float(there[label] / there.sum()),
            of_picks=float(counts[label] / max(1, counts.sum())),
        )
        for label in range(len(there))
        if there[label]
    ]
    return sorted(shares, key=lambda share: -share.of_picks / share.of_data)


def concentration(rows: Rows, num_samples: int) -> float:
    """Share of all picks that the hundredth of the samples has which is picked most.

    Args:
        rows: of the run.
        num_samples: that could have been picked.
    """
    counts = np.sort(np.unique(rows["id"][rows["is_picked"]], return_counts=True)[1])[::-1]
    return float(counts[: max(1, round(TOP * num_samples))].sum() / max(1, counts.sum()))


def extremes(rows: Rows) -> Int64[np.ndarray, " n"]:
    """Indices of the picks with the highest scores: a hundredth of all, the highest first."""
    picked = np.flatnonzero(rows["is_picked"] & np.isfinite(rows["score"]))
    order = picked[np.argsort(-rows["score"][picked], kind="stable")]
    return order[: max(1, round(TOP * len(order)))]


def courses(
    ids: np.ndarray, steps: np.ndarray, losses: np.ndarray, wanted: Int64[np.ndarray, " s"]
) -> list[list[float | None]]:
    """Mean loss of each wanted sample in each of `BUCKETS` parts of the training; None where nobody looked at it.

    Args:
        ids: of each look.
        steps: likewise.
        losses: likewise.
        wanted: ids.
    """
    buckets = steps.astype(np.int64) * BUCKETS // (int(steps.max(initial=0)) + 1)
    order = np.argsort(wanted)
    place, is_wanted = _places(ids, wanted[order])
    own = is_wanted & np.isfinite(losses)
    cells, size = order[place[own]] * BUCKETS + buckets[own], len(wanted) * BUCKETS
    sums, counts = np.bincount(cells, weights=losses[own], minlength=size), np.bincount(cells, minlength=size)
    means = [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]
    return [means[first : first + BUCKETS] for first in range(0, size, BUCKETS)]


def _places(
    ids: Int64[np.ndarray, " n"], among: Int64[np.ndarray, " s"]
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Where each id stands among some in ascending order, and whether it does."""
    if not len(among):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    place = np.searchsorted(among, ids).clip(max=len(among) - 1)
    return place, among[place] == ids
