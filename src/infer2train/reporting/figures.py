"""Which numbers a report draws: for each figure its curves or rows, and in words what is seen in it.

Between what sums up (`summary`, `curves`) and what draws (`plots`, `bars`); `report` puts the figures on the page. A
figure of what no run logged is left out.
"""

from collections.abc import Mapping, Sequence

from infer2train.reporting import bars, plots, tables
from infer2train.reporting.curves import NONE, Curve, ErrorCurves, error_over_seconds, errors_of, step_curves
from infer2train.reporting.runs import RunFolder, RunSet
from infer2train.reporting.summary import MethodSummary

FINAL_PART = 9
"""Panel (b) shows the last ninth of the epochs: 10 of the paper's 90."""
STEP_FIGURES = (
    ("loss", "training loss", 200),
    ("lag", "lag, steps", 50),
    ("captured_gain", "captured gain of the oracle", 100),
    ("oracle_validation_loss", "validation loss of the oracle", 100),
    ("oracle_validation_error", "validation error of the oracle", 100),
)
"""Field of the step rows, its label, and about how many points are drawn."""

Looks = Mapping[str, plots.Style]
Seconds = Mapping[str, Mapping[str, float]]


def figures(runs: RunSet, lines: Sequence[MethodSummary], looks: Looks, seconds: Seconds) -> dict[str, str]:
    """Every figure of a report, by the name that the page has for it.

    Args:
        runs: what it is about.
        lines: their summaries.
        looks: the methods' styles.
        seconds: as `mean_seconds` gives them.
    """
    shown = {method: runs.shown(method) for method in runs.methods if runs.of(method)}
    return {
        **(_gathered_figures if runs.is_gathered else _error_figures)(shown, looks, runs.error_name),
        **(_seconds_figure(shown, looks, runs.error_name) if runs.baseline else {}),
        **_difference_figure(lines, looks, runs.error_name),
        **_step_figures(shown, looks),
        **_budget_figure(seconds),
    }


def mean_seconds(runs: RunSet) -> dict[str, dict[str, float]]:
    """Mean seconds of each part of the wall-clock, by method; of a comparison, over finished runs alone."""
    whole = runs.baseline is not None  # a run that is half done is no cheaper than its neighbours
    return {method: parts for method in runs.methods if (parts := _mean(runs.shown(method), whole))}


def _step_figures(shown: dict[str, list[RunFolder]], looks: Looks) -> dict[str, str]:
    """What `STEP_FIGURES` names over steps, where any method logged it."""
    figures = {}
    for name, label, points in STEP_FIGURES:
        if curves := step_curves(shown, name, points=points):
            title = f"{label} over steps"
            figures[name] = plots.step_curves(curves, looks, label=label, title=title, zero=name != "loss")
    return figures


def _difference_figure(lines: Sequence[MethodSummary], looks: Looks, error: str) -> dict[str, str]:
    """The differences with their intervals, once one has an interval."""
    differences = {line.method: line.difference for line in lines if line.difference is not None}
    if all(found.low is None for found in differences.values()):
        return {}
    told = "; ".join(f"{method} {tables.difference(found)}" for method, found in differences.items())
    title = f"Differences from the baseline in points, with 95 % intervals: {told}"
    return {"differences": bars.difference_intervals(differences, looks, error=error, title=title)}


def _budget_figure(seconds: Seconds) -> dict[str, str]:
    """Where the wall-clock went."""
    if not seconds:
        return {}
    told = []
    for method, parts in seconds.items():
        bar = bars.budget(parts)
        total = sum(bar.values())
        shares = ", ".join(f"{name} {tables.share(value / total)}" for name, value in bar.items())
        told.append(f"{method} {tables.duration(total)}, of it {shares}")
    return {"budget": bars.time_budget(seconds, title=f"Time budget: {'; '.join(told)}")}


def _error_figures(shown: dict[str, list[RunFolder]], looks: Looks, error: str) -> dict[str, str]:
    """Panels (a), all epochs, and (b), the final ones, where there is more than one method to be seen, if there are."""
    curves = {method: errors_of(found) for method, found in shown.items()}
    lasts = [int(found.validation.x[-1]) for found in curves.values() if len(found.validation)]
    if not lasts:
        return {}
    last = max(lasts)
    ends = _said({method: found.validation for method, found in curves.items()}, error)
    figures = {"errors": plots.error_curves(curves, looks, title=f"Error over all epochs; {ends}")}
    first = last + 1 - max(3, round((last + 1) / FINAL_PART))
    if first > 0 and sum(each >= first for each in lasts) >= min(2, len(lasts)):
        title = f"{error.capitalize()} over the final epochs, from {first}; {ends}"
        figures["final_errors"] = plots.error_curves(curves, looks, first_epoch=first, title=title)
    return figures


def _gathered_figures(shown: dict[str, list[RunFolder]], looks: Looks, error: str) -> dict[str, str]:
    """Test and training errors over steps, apart: runs of any lengths have no final epochs in common."""
    curves = {method: errors_of(found, "step") for method, found in shown.items()}
    test = {method: ErrorCurves(found.validation, NONE, NONE) for method, found in curves.items()}
    training = {method: ErrorCurves(NONE, found.mined, found.random) for method, found in curves.items()}
    tested = {method: found.validation for method, found in curves.items() if len(found.validation)}
    figures = {}
    if tested:
        title = f"{error.capitalize()} over steps; {_said(tested, error)}"
        figures["errors"] = plots.error_curves(test, looks, over="step", title=title)
    if any(len(found.mined) or len(found.random) for found in training.values()):
        title = "Training error over steps"
        figures["training_errors"] = plots.error_curves(training, looks, over="step", title=title)
    return figures


def _seconds_figure(shown: dict[str, list[RunFolder]], looks: Looks, error: str) -> dict[str, str]:
    """Panel (c): what each second gave."""
    curves = {method: curve for method, found in shown.items() if len(curve := error_over_seconds(found))}
    if not curves:
        return {}
    title = f"{error.capitalize()} over seconds; {_said(curves, error)}"
    return {"seconds": plots.error_over_seconds(curves, looks, error=error, title=title)}


def _said(curves: Mapping[str, Curve], error: str) -> str:
    """Where curves end, for those who cannot see them."""
    ends = [f"{method} {tables.percent(float(curve.mean[-1]))} %" for method, curve in curves.items() if len(curve)]
    return f"{error} at the end: {', '.join(ends)}"


def _mean(runs: Sequence[RunFolder], whole: bool) -> dict[str, float]:
    """Mean seconds of each part over the runs that were timed, or over the finished ones of them."""
    timed = [run.seconds for run in runs if run.seconds.get("total") and (run.finished or not whole)]
    names = dict.fromkeys(name for seconds in timed for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in timed) / len(timed) for name in names}
