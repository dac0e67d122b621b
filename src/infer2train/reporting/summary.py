"""One line for each method of a comparison: its errors, its difference from the baseline, what it cost.

Both the command line's table and the report's are made from this. Only finished runs count, and only seeds that a
method and the baseline both finished are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer2train.reporting.runs import RunFolder, RunSet, read
from infer2train.reporting.statistics import PairedDifference, mean_std, paired_difference

JUDGED_ON = ("data", "validation_split")
"""The settings that say which data a test error is of."""


@dataclass(frozen=True)
class MethodSummary:
    """What the finished runs of one method say. Errors are fractions.

    Args:
        method: its name.
        test_errors: final test error by seed, of the finished runs.
        mean: their mean; None where no run has finished.
        std: their sample standard deviation; None for fewer than two.
        difference: from the baseline, over the seeds that both have; None for the baseline and where there is none.
        seconds: mean wall-clock of a finished run; None where it was not timed.
        scoring_share: mean part of it spent on scoring, 0 to 1; None where it was not measured.
        unfinished: seeds asked for that have no result yet.
    """

    method: str
    test_errors: dict[int, float]
    mean: float | None
    std: float | None
    difference: PairedDifference | None
    seconds: float | None
    scoring_share: float | None
    unfinished: tuple[int, ...]


def summarise(folder: Path) -> list[MethodSummary]:
    """The summaries of a run folder (one) or a comparison folder (one for each method, in its order).

    Raises:
        ValueError: the folder holds no run.

    Example:
        >>> [line.method for line in summarise(Path("runs/first"))]
        ['baseline', 'nm-augment']
    """
    return summaries(read(folder))


def summaries(runs: RunSet) -> list[MethodSummary]:
    """As `summarise`, of folders already read."""
    return [_summary(runs, method, _paired_with(runs, method)) for method in runs.methods]


def _paired_with(runs: RunSet, method: str) -> dict[int, float]:
    """The baseline's errors by seed, as far as they may be subtracted from this method's."""
    if runs.baseline in (None, method):
        return {}
    baseline, others = runs.of(str(runs.baseline)), runs.of(method)
    return final_errors(baseline) if not runs.is_gathered or judged_alike([*baseline, *others]) else {}


def judged_alike(runs: Sequence[RunFolder]) -> bool:
    """Whether the test errors of these runs are of the same data, as far as they wrote it down."""
    judged = {tuple(repr(run.config.get(name)) for name in JUDGED_ON) for run in runs}
    return len(judged) == 1 and all("data" in run.config for run in runs)


def _summary(runs: RunSet, method: str, baseline: dict[int, float]) -> MethodSummary:
    """One method's line."""
    finished = [run for run in runs.of(method) if run.finished]
    errors = final_errors(finished)
    mean, std = mean_std(list(errors.values())) if errors else (None, None)
    return MethodSummary(
        method=method,
        test_errors=errors,
        mean=mean,
        std=std,
        difference=difference_from(baseline, errors),
        seconds=mean_of([run.seconds.get("total") for run in finished]),
        scoring_share=mean_of([run.scoring_share for run in finished]),
        unfinished=tuple(seed for asked, seed in runs.asked if asked == method and seed not in errors),
    )


def final_errors(runs: Sequence[RunFolder]) -> dict[int, float]:
    """Final test error of the finished runs, by seed."""
    return {run.seed: run.test_error for run in runs if run.finished and run.test_error is not None}


def difference_from(baseline: Mapping[int, float], errors: Mapping[int, float]) -> PairedDifference | None:
    """From the baseline over common seeds; None where there is none."""
    common = [seed for seed in errors if seed in baseline]
    if not common:
        return None
    return paired_difference([errors[seed] for seed in common], [baseline[seed] for seed in common])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of those that were measured."""
    measured = [value for value in values if value is not None]
    return mean_std(measured)[0] if measured else None
