"""`report.html`: one self-contained page about a run, a comparison, or any runs beside one another.

Last in `reporting`: it reads (`runs`, `gallery`), sums up (`summary`, `curves`), draws (`plots`) and fills the template
`report.html.j2` beside this file. The page asks the network for nothing, and the same folder gives the same bytes.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from infer2train.reporting import lanes, plots, sections, tables
from infer2train.reporting.curves import NONE, Curve, ErrorCurves, error_over_seconds, errors_of, step_curves
from infer2train.reporting.gallery import GalleryRow, data_uri, load_gallery, replace_file, spread
from infer2train.reporting.gathering import gather
from infer2train.reporting.runs import RunFolder, RunSet
from infer2train.reporting.summary import MethodSummary, summaries
from infer2train.reporting.svg import SERIES

REPORT, COMPARED = "report.html", "comparison.html"
TEMPLATE, STYLE, SCRIPT = "report.html.j2", "page.css", "page.js"
FINAL_PART = 9
"""Panel (b) shows the last ninth of the epochs: 10 of the paper's 90."""
GALLERY_ROWS = 12
"""Samples shown, over all methods."""


def write_report(*folders: Path, out: Path | None = None, baseline: Path | None = None) -> Path:
    """Write the page of a run folder, of a comparison folder, or of the runs of several of these.

    Args:
        folders: as the trainer left them; also while it still runs, and after a kill.
        out: of the page. Default: `report.html` in the folder; of several `comparison.html` beside the first, so that
            none loses its own.
        baseline: of several, the one that the others are compared with. Default: the first with the method baseline,
            else the first.

    Returns:
        The path of the page.

    Raises:
        ValueError: a folder holds no run, or the baseline is none of several folders.

    Example:
        >>> write_report(Path("runs/first"))
        PosixPath('runs/first/report.html')
        >>> write_report(Path("runs/first"), Path("runs/second"))
        PosixPath('runs/comparison.html')
    """
    runs = gather(folders, baseline)
    page = _template().render(context(runs))
    beside = Path(os.path.normpath(folders[0] / "..")) / COMPARED
    out = out or (beside if runs.is_gathered else folders[0] / REPORT)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, page.encode())
    return out


def context(runs: RunSet) -> dict[str, Any]:
    """Everything that the template shows, by the name it has there."""
    lines = summaries(runs)
    shown = {method: runs.shown(method) for method in runs.methods if runs.of(method)}
    whole = runs.baseline is not None  # a run that is half done is no cheaper than its neighbours
    seconds = {method: parts for method, found in shown.items() if (parts := _mean_seconds(found, whole))}
    looks = plots.styles(runs.methods, runs.baseline or "baseline")
    return {
        "title": sections.title(runs),
        "comparison": runs.baseline is not None,
        "gathered": runs.is_gathered,
        "subject": sections.subject(runs),
        "data_notes": sections.data_notes(runs.runs.values()),
        "state": sections.state(runs),
        "summaries": lines,
        "baseline": runs.baseline,
        "unpaired": {line.method: sections.unpaired(runs, line.method) for line in lines if runs.baseline},
        "table_of_runs": sections.table_of_runs(runs) if runs.is_gathered else [],
        "seeds": runs.seeds,
        "looks": looks,
        "series": SERIES,
        "facts": sections.facts(runs) if runs.baseline is None else [],
        "advised": sections.advised(runs),
        "figures": {
            **(_gathered_figures(shown, looks) if runs.is_gathered else _error_figures(shown, looks)),
            **(_seconds_figure(shown, looks) if runs.baseline else {}),
            **_difference_figure(lines, looks),
            **_step_figures(shown, looks),
            **_budget_figure(seconds),
        },
        "parts": plots.parts_of(seconds),
        "timeline": _timeline(runs),
        "galleries": _galleries(runs),
        "settings": sections.settings(runs),
        "machines": sections.machines(runs.runs.values()),
        "commands": sections.commands(runs.runs.values()),
        "notes": sections.notes(runs),
    }


def _template() -> Any:
    """The page's template, with the words of `tables` as filters."""
    from markupsafe import Markup

    words: dict[str, Callable[..., Any]] = {
        "minus": lambda text: str(text).replace("-", "\N{MINUS SIGN}"),
        "percent": tables.percent,
        "error": tables.error,
        "points": tables.points,
        "difference": tables.difference,
        "outlook": tables.outlook,
        "duration": tables.duration,
        "share": tables.share,
        "seeds": tables.seeds,
        "image": data_uri,
        "figure": Markup,
        "setting": tables.setting,
        "grouped": tables.grouped,
    }
    return page_template(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"), words)


def page_template(source: str, filters: Mapping[str, Callable[..., Any]]) -> Any:
    """A page in the style of all of them; whatever is not ours is escaped.

    It finds their looks as `style`, and as `script` what sorts its tables, which a browser runs for its `script_digest`
    in the page's policy and nothing else.

    Args:
        source: of the template.
        filters: by name.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    here = resources.files(__package__)
    style, script = (here.joinpath(file).read_text(encoding="utf-8") for file in (STYLE, SCRIPT))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment.globals |= {"style": Markup(style), "script": Markup(script), "script_digest": f"sha256-{digest}"}
    return environment.from_string(source)


STEP_FIGURES = (
    ("loss", "training loss", 200),
    ("lag", "lag, steps", 50),
    ("captured_gain", "captured gain of the oracle", 100),
    ("oracle_validation_loss", "validation loss of the oracle", 100),
    ("oracle_validation_error", "validation error of the oracle", 100),
)
"""Field of the step rows, its label, and about how many points are drawn."""


def _step_figures(shown: dict[str, list[RunFolder]], looks: dict[str, plots.Style]) -> dict[str, str]:
    """What `STEP_FIGURES` names over steps, where any method logged it."""
    figures = {}
    for name, label, points in STEP_FIGURES:
        if curves := step_curves(shown, name, points=points):
            title = f"{label} over steps"
            figures[name] = plots.step_curves(curves, looks, label=label, title=title, zero=name != "loss")
    return figures


def _difference_figure(lines: Sequence[MethodSummary], looks: dict[str, plots.Style]) -> dict[str, str]:
    """The differences with their intervals, once one has an interval."""
    differences = {line.method: line.difference for line in lines if line.difference is not None}
    if all(found.low is None for found in differences.values()):
        return {}
    told = "; ".join(f"{method} {tables.difference(found)}" for method, found in differences.items())
    title = f"Differences from the baseline in points, with 95 % intervals: {told}"
    return {"differences": plots.difference_intervals(differences, looks, title=title)}


def _budget_figure(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Where the wall-clock went."""
    if not seconds:
        return {}
    told = []
    for method, parts in seconds.items():
        bar = plots.budget(parts)
        total = sum(bar.values())
        shares = ", ".join(f"{name} {tables.share(value / total)}" for name, value in bar.items())
        told.append(f"{method} {tables.duration(total)}, of it {shares}")
    return {"budget": plots.time_budget(seconds, title=f"Time budget: {'; '.join(told)}")}


def _error_figures(shown: dict[str, list[RunFolder]], looks: dict[str, plots.Style]) -> dict[str, str]:
    """Panels (a), all epochs, and (b), the final ones."""
    curves = {method: errors_of(found) for method, found in shown.items()}
    last = max((int(found.validation.x[-1]) for found in curves.values() if len(found.validation)), default=-1)
    if last < 0:
        return {}
    ends = _said({method: found.validation for method, found in curves.items()})
    figures = {"errors": plots.error_curves(curves, looks, title=f"Error over all epochs; {ends}")}
    first = last + 1 - max(3, round((last + 1) / FINAL_PART))
    if first > 0:
        title = f"Test error over the final epochs, from {first}; {ends}"
        figures["final_errors"] = plots.error_curves(curves, looks, first_epoch=first, title=title)
    return figures


def _gathered_figures(shown: dict[str, list[RunFolder]], looks: dict[str, plots.Style]) -> dict[str, str]:
    """Test and training errors over steps, apart: runs of any lengths have no final epochs in common."""
    curves = {method: errors_of(found, "step") for method, found in shown.items()}
    test = {method: ErrorCurves(found.validation, NONE, NONE) for method, found in curves.items()}
    training = {method: ErrorCurves(NONE, found.mined, found.random) for method, found in curves.items()}
    tested = {method: found.validation for method, found in curves.items() if len(found.validation)}
    figures = {}
    if tested:
        title = f"Test error over steps; {_said(tested)}"
        figures["errors"] = plots.error_curves(test, looks, over="step", title=title)
    if any(len(found.mined) or len(found.random) for found in training.values()):
        title = "Training error over steps"
        figures["training_errors"] = plots.error_curves(training, looks, over="step", title=title)
    return figures


def _seconds_figure(shown: dict[str, list[RunFolder]], looks: dict[str, plots.Style]) -> dict[str, str]:
    """Panel (c): what each second gave."""
    curves = {method: curve for method, found in shown.items() if len(curve := error_over_seconds(found))}
    if not curves:
        return {}
    return {"seconds": plots.error_over_seconds(curves, looks, title=f"Test error over seconds; {_said(curves)}")}


def _said(curves: Mapping[str, Curve]) -> str:
    """Where curves end, for those who cannot see them."""
    ends = [f"{method} {tables.percent(float(curve.mean[-1]))} %" for method, curve in curves.items() if len(curve)]
    return f"test error at the end: {', '.join(ends)}"


def _galleries(runs: RunSet) -> list[tuple[str, int, list[GalleryRow], int]]:
    """For each method with a gallery: its name, the run's seed, the rows shown, how many there are."""
    found = []
    for method in runs.methods:
        for run in runs.shown(method):
            if rows := load_gallery(run.folder):
                found.append((method, run.seed, rows))
                break
    each = max(3, GALLERY_ROWS // max(1, len(found)))
    return [(method, seed, spread(rows, each), len(rows)) for method, seed, rows in found]


def _timeline(runs: RunSet) -> dict[str, Any] | None:
    """The last steps of a single run with an oracle."""
    spans = lanes.load_timeline(runs.folders[0]) if runs.baseline is None else []
    if len(lanes.lanes(spans)) < 2:
        return None
    return {
        "heading": lanes.heading(spans),
        "figure": lanes.picture(spans),
        "legend": lanes.legend(spans),
        "is_inline": lanes.is_inline(spans),
    }


def _mean_seconds(runs: Sequence[RunFolder], whole: bool) -> dict[str, float]:
    """Mean seconds of each part over the runs that were timed, or over the finished ones of them."""
    timed = [run.seconds for run in runs if run.seconds.get("total") and (run.finished or not whole)]
    names = dict.fromkeys(name for seconds in timed for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in timed) / len(timed) for name in names}
