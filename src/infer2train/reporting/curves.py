"""Curves over epochs, steps or seconds, averaged over seeds.

Between `runs`, which reads the rows, and `plots`, which draws. `thinned` averages neighbours where there are more
points than a page can show, and keeps their extremes as the band.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from infer2train.reporting.runs import RunFolder, logged
from infer2train.reporting.statistics import mean_std

MOST_POINTS = 250
"""A page shows this many points of a line apart."""


@dataclass(frozen=True)
class Curve:
    """A line and the band around it.

    Args:
        x: epochs, steps or seconds, ascending.
        mean: over the seeds that have a value there, in the unit of the values.
        low: lower edge of the band; `mean` itself where there is no band.
        high: upper edge, likewise.
    """

    x: Int64[np.ndarray, " n"] | Float64[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.x)

    def since(self, x: int) -> "Curve":
        """The part from `x` on."""
        kept = self.x >= x
        return Curve(self.x[kept], self.mean[kept], self.low[kept], self.high[kept])


NONE = Curve(np.empty(0, np.int64), *(np.empty(0, np.float64) for _ in range(3)))
"""Of what was not measured."""


@dataclass(frozen=True)
class ErrorCurves:
    """The error curves of one method, as fractions by epoch or step.

    Args:
        validation: on the test set.
        mined: on the views that were trained on.
        random: on random views of training samples.
    """

    validation: Curve
    mined: Curve
    random: Curve


def across_seeds(values: Sequence[Mapping[int, float]]) -> Curve:
    """Mean at every x that any seed has, with a band of one sample standard deviation over seeds to either side.

    Args:
        values: for each seed, value by epoch or step.

    Example:
        >>> across_seeds([{0: 1.0, 1: 3.0}, {0: 2.0}]).mean.tolist()
        [1.5, 3.0]
    """
    positions = sorted({x for seed in values for x in seed})
    pairs = [mean_std([seed[x] for seed in values if x in seed]) for x in positions]
    mean = np.array([mean for mean, _ in pairs], dtype=np.float64)
    std = np.array([std or 0.0 for _, std in pairs], dtype=np.float64)
    return Curve(np.array(positions, dtype=np.int64), mean, mean - std, mean + std)


def errors_of(runs: Sequence[RunFolder], over: Literal["epoch", "step"] = "epoch") -> ErrorCurves:
    """The three error curves of one method's runs, a point for each epoch.

    Args:
        runs: of the method.
        over: what they are drawn over.
    """

    def of(name: str) -> Curve:
        return across_seeds([logged(run.epochs, over, name) for run in runs])

    return ErrorCurves(of("test_error"), of("train_error_mined"), of("train_error_random"))


def error_over_seconds(runs: Sequence[RunFolder]) -> Curve:
    """Test error of one method's runs over the wall-clock, a point for each epoch: its mean time and its mean error.

    Epochs that one of the runs has not done, or has not timed, are left out: a mean of fewer would jump.
    """
    errors, times = [logged(run.epochs, "epoch", "test_error") for run in runs], [elapsed(run) for run in runs]
    epochs = {*chain(*errors)}.intersection(*errors, *times)
    error, time = (
        across_seeds([{epoch: seed[epoch] for epoch in epochs} for seed in values]) for values in (errors, times)
    )
    return Curve(time.mean, error.mean, error.low, error.high)


def elapsed(run: RunFolder) -> dict[int, float]:
    """Seconds of wall-clock from the start of a run, or of what it needed first, to the end of each epoch, with its
    evaluation."""
    seconds: list[Any] = [(row.get("seconds") or {}).get("total") for row in run.epochs]
    timed = seconds[: seconds.index(None)] if None in seconds else seconds
    ends = zip(run.epochs, accumulate(timed), strict=False)
    return {int(row["epoch"]): run.before_seconds + total for row, total in ends}


def step_curves(runs: Mapping[str, Sequence[RunFolder]], name: str, *, points: int) -> dict[str, Curve]:
    """One field of the step rows over steps, for each method that logged it.

    Every row is a point if a page can show the longest curve so; else all are thinned alike, to about `points` points.
    """
    curves = {
        method: across_seeds([logged(run.steps, "step", name) for run in found]) for method, found in runs.items()
    }
    longest = max(map(len, curves.values()), default=0)
    size = -(-longest // points) if longest > MOST_POINTS else 1
    return {method: thinned(curve, size) for method, curve in curves.items() if len(curve)}


def thinned(curve: Curve, size: int) -> Curve:
    """One point for every `size` neighbours: their mean, and the extremes of their bands, at the last position.

    Args:
        curve: of any length.
        size: at least 1.
    """
    if size == 1 or not len(curve):
        return curve
    starts = np.arange(0, len(curve), size)
    counts = np.diff(np.append(starts, len(curve)))
    return Curve(
        curve.x[starts + counts - 1],
        np.add.reduceat(curve.mean, starts) / counts,
        np.minimum.reduceat(curve.low, starts),
        np.maximum.reduceat(curve.high, starts),
    )
