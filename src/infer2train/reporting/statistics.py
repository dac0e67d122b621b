"""Does a method help? Paired differences over seeds, with the interval that a few seeds allow.

Takes plain lists of test errors and gives plain numbers; it reads no files and draws nothing (`reporting` does). A
method and the baseline share their view 0 and their order for one seed (common random numbers), so they are compared
seed by seed. One comparison at a time: nothing here is adjusted for having asked about many methods.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

SIGNIFICANCE = 0.05
"""Two-sided: the interval holds 1 - 0.05 = 95 %."""
POWER = 0.80
"""With `seeds_needed` seeds, a true difference as large as the observed one is found this often."""
MOST_SEEDS = 1000
"""Beyond this the answer is "many": no one will train so often for a difference so small."""
_DECIMALS = 12
"""Differences are rounded to this: 0.3 - 0.2 and 0.2 - 0.1 are the same difference, not a variance of 1e-34."""


class Verdict(StrEnum):
    """What the interval says about an error, of which less is better."""

    HELPS = "HELPS"
    """The whole interval lies below 0: the error went down."""
    HURTS = "HURTS"
    """The whole interval lies above 0: the error went up."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The interval holds 0, or there is none."""


@dataclass(frozen=True)
class PairedDifference:
    """Treatment minus baseline, in the unit of the values given; negative is better.

    Args:
        mean: mean of the differences.
        std: their sample standard deviation (n - 1 in the denominator); None for n = 1.
        low: lower end of the 95 % interval; None for n = 1, and where all pairs differ alike.
        high: upper end; None likewise.
        n: number of pairs.
        verdict: what the interval says.
        seeds_needed: for INCONCLUSIVE, about how many pairs would resolve a difference of this mean; None where that is
            more than 1000, or where the verdict is settled.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    n: int
    verdict: Verdict
    seeds_needed: int | None


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, sqrt(Σ (x - mean)² / (n - 1)).

    Args:
        values: at least one finite number.

    Returns:
        Both in the unit of `values`; the deviation of a single value is unknown: None.

    Raises:
        ValueError: there is no value, or one is not finite.

    Example:
        >>> mean_std([1.0, 2.0, 3.0])
        (2.0, 1.0)
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"a mean needs at least one value, all finite: got {list(values)}; leave out failed runs")
    if min(values) == max(values):  # exactly: dividing a sum would leave a deviation of 1e-17
        return values[0], None if len(values) == 1 else 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def paired_difference(treatment: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """The paired t-interval of treatment minus baseline, and what it says.

    mean(d) ± t(0.975, n - 1) · std(d) / sqrt(n),  d_i = treatment_i - baseline_i

    With a deviation of 0 there is no interval: a few errors of a few hundred test images are often the same number
    apart, which says nothing of how far the next ones are.

    Args:
        treatment: one test error a seed, in percentage points or as fractions.
        baseline: the errors of the same seeds, in the same order and unit.

    Raises:
        ValueError: the lists differ in length, are empty, or hold a value that is not finite.

    Example:
        >>> paired_difference([5.9, 6.1, 6.0], [6.9, 7.0, 7.1]).verdict.value
        'HELPS'

    Source: Student, Biometrika 6 (1908). The interval is valid for a number of seeds fixed beforehand: adding seeds
    until it excludes 0 is not a test.
    """
    if len(treatment) != len(baseline):
        raise ValueError(
            f"a paired difference needs the same seeds on both sides: got {len(treatment)} and {len(baseline)} errors; "
            "give only the seeds that both have"
        )
    differences = [round(a - b, _DECIMALS) for a, b in zip(treatment, baseline, strict=True)]
    mean, std = mean_std(differences)
    if std is None:
        return PairedDifference(mean, None, None, None, 1, Verdict.INCONCLUSIVE, seeds_needed=2)
    n = len(differences)
    if std == 0:
        needed = n + 1 if mean else None
        return PairedDifference(mean, std, None, None, n, Verdict.INCONCLUSIVE, needed)
    from scipy.stats import t

    half = float(t.ppf(1 - SIGNIFICANCE / 2, n - 1)) * std / math.sqrt(n)
    verdict = _verdict(mean - half, mean + half)
    needed = seeds_needed(mean, std) if verdict is Verdict.INCONCLUSIVE else None
    return PairedDifference(mean, std, mean - half, mean + half, n, verdict, needed)


def seeds_needed(mean: float, std: float) -> int | None:
    """About how many paired seeds resolve a true difference of `mean`: 5 % two-sided, power 80 %.

    The smallest n >= 2 with n >= ((t(0.975, n - 1) + t(0.8, n - 1)) · std / mean)², the usual normal approximation with
    Student's quantiles put in for the normal ones. It is as uncertain as the few seeds behind `mean` and `std`.

    Args:
        mean: the difference to find, any unit.
        std: standard deviation of the differences, same unit.

    Returns:
        The number; None for more than 1000, and for a mean of 0.

    Example:
        >>> seeds_needed(1.0, 1.0), seeds_needed(0.001, 1.0)
        (10, None)
    """
    if mean == 0 or std / abs(mean) > math.sqrt(MOST_SEEDS):
        return None
    from scipy.stats import t

    n = np.arange(2, MOST_SEEDS + 1)
    enough = n >= ((t.ppf(1 - SIGNIFICANCE / 2, n - 1) + t.ppf(POWER, n - 1)) * std / mean) ** 2
    return int(n[enough.argmax()]) if enough.any() else None


def _verdict(low: float, high: float) -> Verdict:
    """HELPS below 0, HURTS above, INCONCLUSIVE where the interval touches 0."""
    if high < 0:
        return Verdict.HELPS
    return Verdict.HURTS if low > 0 else Verdict.INCONCLUSIVE
