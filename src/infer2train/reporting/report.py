"""`report.html`: one self-contained page about a run or a comparison.

Last in `reporting`: it reads (`runs`, `gallery`), sums up (`summary`, `curves`), draws (`plots`) and fills the template
`report.html.j2` beside this file. The page asks the network for nothing, and the same folder gives the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from infer2train.reporting import lanes, plots, sections, tables
from infer2train.reporting.curves import ErrorCurves, errors_of, step_curves
from infer2train.reporting.gallery import GalleryRow, data_uri, load_gallery, replace_file, spread
from infer2train.reporting.runs import RunFolder, RunSet, read
from infer2train.reporting.summary import MethodSummary, summaries
from infer2train.reporting.svg import SERIES

REPORT, TEMPLATE, STYLE = "report.html", "report.html.j2", "page.css"
FINAL_PART = 9
"""Panel (b) shows the last ninth of the epochs: 10 of the paper's 90."""
GALLERY_ROWS = 12
"""Samples shown, over all methods."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder or a comparison folder.

    Args:
        folder: as the trainer left it; also while it still runs, and after a kill.

    Returns:
        The path of the page.

    Raises:
        ValueError: the folder holds no run.

    Example:
        >>> write_report(Path("runs/first"))
        PosixPath('runs/first/report.html')
    """
    page = _template().render(context(read(folder)))
    replace_file(folder / REPORT, page.encode())
    return folder / REPORT


def context(runs: RunSet) -> dict[str, Any]:
    """Everything that the template shows, by the name it has there."""
    lines = summaries(runs)
    shown = {method: runs.shown(method) for method in runs.methods if runs.of(method)}
    whole = runs.baseline is not None  # a run that is half done is no cheaper than its neighbours
    seconds = {method: parts for method, found in shown.items() if (parts := _mean_seconds(found, whole))}
    looks = plots.styles(runs.methods, runs.baseline or "baseline")
    return {
        "title": runs.folder.resolve().name,
        "comparison": runs.baseline is not None,
        "subject": sections.subject(runs),
        "data_notes": sections.data_notes(runs.runs.values()),
        "state": sections.state(runs),
        "summaries": lines,
        "baseline": runs.baseline,
        "seeds": runs.seeds,
        "looks": looks,
        "series": SERIES,
        "facts": sections.facts(runs) if runs.baseline is None else [],
        "advised": sections.advised(runs),
        "figures": {
            **_error_figures({method: errors_of(found) for method, found in shown.items()}, looks),
            **_difference_figure(lines, looks),
            **_step_figures(shown, looks),
            **({"budget": plots.time_budget(seconds)} if seconds else {}),
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
        "setting": sections.setting,
    }
    return page_template(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"), words)


def page_template(source: str, filters: Mapping[str, Callable[..., Any]]) -> Any:
    """A page in the style of all of them, which it finds as `style`; whatever is not ours is escaped.

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
    environment.globals["style"] = Markup(resources.files(__package__).joinpath(STYLE).read_text(encoding="utf-8"))
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
    return {"differences": plots.difference_intervals(differences, looks)}


def _error_figures(curves: dict[str, ErrorCurves], looks: dict[str, plots.Style]) -> dict[str, str]:
    """Panels (a), all epochs, and (b), the final ones."""
    last = max((int(found.validation.x[-1]) for found in curves.values() if len(found.validation)), default=-1)
    if last < 0:
        return {}
    figures = {"errors": plots.error_curves(curves, looks, title="Error over all epochs")}
    first = last + 1 - max(3, round((last + 1) / FINAL_PART))
    if first > 0:
        title = f"Error over the final epochs, from {first}"
        figures["final_errors"] = plots.error_curves(curves, looks, first_epoch=first, title=title)
    return figures


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
    spans = lanes.load_timeline(runs.folder) if runs.baseline is None else []
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
