"""`report.html`: one self-contained page about a run, a comparison, or any runs beside one another.

Last in `reporting`: it reads (`gathering`, `gallery`), sums up (`summary`), draws (`figures`) and fills the template
`report.html.j2` beside this file. The page asks the network for nothing, and the same folder gives the same bytes.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from infer2train.reporting import lanes, sections, tables
from infer2train.reporting.bars import parts_of
from infer2train.reporting.figures import figures, mean_seconds
from infer2train.reporting.gallery import GalleryRow, data_uri, load_gallery, replace_file, spread
from infer2train.reporting.gathering import gather
from infer2train.reporting.plots import styles
from infer2train.reporting.runs import RunSet
from infer2train.reporting.summary import summaries
from infer2train.reporting.svg import SERIES

REPORT, COMPARED = "report.html", "comparison.html"
TEMPLATE, STYLE, SCRIPT = "report.html.j2", "page.css", "page.js"
GALLERY_ROWS = 12
"""Samples shown, over all methods."""


def write_report(
    *folders: Path,
    out: Path | None = None,
    baseline: Path | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write the page of a run folder, of a comparison folder, or of the runs of several of these.

    Args:
        folders: as the trainer left them; also while it still runs, and after a kill.
        out: of the page. Default: `report.html` in the folder; of several `comparison.html` beside the first, so that
            none loses its own.
        baseline: of several, the one that the others are compared with. Default: the first with the method baseline,
            else the first.
        defaults: of several, what a run of `train` has where an earlier release did not write a setting down yet.

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
    runs = gather(folders, baseline, defaults)
    page = _template().render(context(runs))
    beside = Path(os.path.normpath(folders[0] / "..")) / COMPARED
    out = out or (beside if runs.is_gathered else folders[0] / REPORT)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, page.encode())
    return out


def context(runs: RunSet) -> dict[str, Any]:
    """Everything that the template shows, by the name it has there."""
    lines = summaries(runs)
    seconds = mean_seconds(runs)
    looks = styles(runs.methods, runs.baseline or "baseline")
    return {
        "title": sections.title(runs),
        "comparison": runs.baseline is not None,
        "gathered": runs.is_gathered,
        "subject": sections.subject(runs),
        "data_notes": sections.data_notes(runs.runs.values()),
        "state": sections.state(runs),
        "summaries": lines,
        "baseline": runs.baseline,
        "error_name": runs.error_name,
        "unpaired": {line.method: sections.unpaired(runs, line.method) for line in lines if runs.baseline},
        "table_of_runs": sections.table_of_runs(runs) if runs.is_gathered else [],
        "seeds": runs.seeds,
        "looks": looks,
        "series": SERIES,
        "facts": sections.facts(runs) if runs.baseline is None else [],
        "advised": sections.advised(runs),
        "figures": figures(runs, lines, looks, seconds),
        "parts": parts_of(seconds),
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
