"""`infer2train inspect`: one self-contained page about what a run picked, and a list of probably wrong labels."""

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infer2train.batches import Split, split_batch
from infer2train.draws.addresses import Addresses
from infer2train.reporting.gallery import replace_file
from infer2train.reporting.report import page_template
from infer2train.studies.inspection.findings import CONCENTRATED, TOP, class_shares, concentration, courses, extremes
from infer2train.studies.inspection.shown import Show, as_html, shown
from infer2train.studies.inspection.subject import Subject, subject
from infer2train.studies.inspection.suspects import Suspects, losses_of, suspects

PAGE, TABLE, TEMPLATE = "inspect.html", "suspects.csv", "inspect.html.j2"
SHOWN_PICKS, SHOWN_RIVALS, SHOWN_EXTREMES, SHOWN_SUSPECTS = 120, 4, 60, 100


@dataclass(frozen=True)
class Seen:
    """One view on the page: its element, its score, and whether it was picked."""

    element: str
    score: float
    is_picked: bool


@dataclass(frozen=True)
class Beside:
    """A pick with what lost to it."""

    id: int
    label: str
    step: int
    lag: int
    views: list[Seen]


@dataclass(frozen=True)
class Suspect:
    """A sample whose loss stayed high."""

    rank: int
    id: int
    label: str
    loss: float
    looks: int
    element: str
    course: str


def inspect(
    folder: str | Path,
    data: Any = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    split: Split = split_batch,
    show: Show = shown,
    class_names: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write `inspect.html` and `suspects.csv` into the folder of a run.

    Views are made again from their addresses; nothing but those was kept.

    Args:
        folder: of `train`, or the `log_dir` of `mine()`; of a run that is under way or done.
        data: what `mine()` was given, a DataLoader. Default: what the run's configuration names.
        transform: what `mine()` was given.
        split: likewise.
        show: makes an image or a text of the inputs of one sample. Default: images, texts and rows of numbers.
        class_names: by label. Default: those of the run's data.
        say: called with what is being done.

    Returns:
        The path of the page.

    Raises:
        ValueError: nothing was kept of what the run picked, or its data are not known, or cannot be shown.

    Example:
        >>> inspect("runs/first")
        PosixPath('runs/first/inspect.html')
    """
    say("what was picked, and the data")
    run = subject(Path(folder), data, transform=transform, split=split, class_names=class_names)
    rows = run.rows
    say("labels")
    labels = run.labels(run.source.ids)
    ranked = suspects(rows, run.is_of_views)
    say("views")
    context = {
        "title": run.folder.resolve().name,
        "method": run.mining.method,
        "of_views": run.is_of_views,
        "num_samples": len(run.source.ids),
        "num_rows": int(rows["is_trained"].sum()),
        "num_picks": int(rows["is_picked"].sum()),
        "median_lag": float(np.median((rows["step"] - rows["version"])[rows["version"] >= 0]))
        if (rows["version"] >= 0).any()
        else None,
        "classes": [(run.class_name(share.label), share) for share in class_shares(rows, labels)],
        "concentration": concentration(rows, len(run.source.ids)),
        "top": TOP,
        "concentrated": CONCENTRATED,
        "picks": _beside(run, show),
        "extremes": _extremes(run, show),
        "suspects": _suspects(run, ranked, labels, show),
        "num_ranked": len(ranked.ids),
    }
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    from markupsafe import Markup

    page = page_template(source, {"element": Markup, "loss": _loss}).render(context)
    replace_file(run.folder / PAGE, page.encode())
    replace_file(run.folder / TABLE, _table(run, ranked, labels).encode())
    return run.folder / PAGE


def _loss(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"


def _spread(index: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " m"]:
    return index if len(index) <= count else index[np.linspace(0, len(index) - 1, count).round().astype(np.int64)]


def _beside(run: Subject, show: Show) -> list[Beside]:
    """Picks over the whole run, each with those of its rivals that have rows, the hardest first."""
    rows = run.rows
    # A row's rivals are in its slot where views are picked, and in its draw where samples are.
    group = rows["draw"].astype(np.int64) * (int(rows["slot"].max()) + 1) + rows["slot"]
    group = group if run.is_of_views else rows["draw"].astype(np.int64)
    has_rivals = np.isin(group, group[~rows["is_trained"]])
    candidates = np.flatnonzero(rows["is_picked"] & has_rivals)
    lost = np.flatnonzero(~rows["is_trained"])
    lost = lost[np.argsort(group[lost], kind="stable")]
    found = []
    for pick in _spread(candidates, SHOWN_PICKS).tolist():
        first, last = np.searchsorted(group[lost], [group[pick], group[pick] + 1])
        rivals = lost[first:last]
        rivals = rivals[np.argsort(-rows["score"][rivals], kind="stable")]
        rivals = _spread(rivals, SHOWN_RIVALS)
        places = np.concatenate([[pick], rivals])
        samples = run.samples(Addresses(rows["id"][places], rows["seed"][places]))
        name = run.class_name(samples[0][1])
        views = [
            Seen(
                _element(show, inputs, run, target, int(rows["id"][place])), float(rows["score"][place]), place == pick
            )
            for place, (inputs, target) in zip(places.tolist(), samples, strict=True)
        ]
        step, version = int(rows["step"][pick]), int(rows["version"][pick])
        found.append(Beside(int(rows["id"][pick]), name, step, step - version if version >= 0 else 0, views))
    return found


def _element(show: Show, inputs: Any, run: Subject, target: Any, sample: int) -> str:
    return as_html(show(inputs), f"sample {sample}, {run.class_name(target)}")


def _extremes(run: Subject, show: Show) -> list[Beside]:
    rows = run.rows
    places = extremes(rows)
    places = places[np.sort(np.unique(rows["id"][places], return_index=True)[1])][:SHOWN_EXTREMES]
    samples = run.samples(Addresses(rows["id"][places], rows["seed"][places]))
    return [
        Beside(
            int(rows["id"][place]),
            run.class_name(target),
            int(rows["step"][place]),
            0,
            [Seen(_element(show, inputs, run, target, int(rows["id"][place])), float(rows["score"][place]), True)],
        )
        for place, (inputs, target) in zip(places.tolist(), samples, strict=True)
    ]


def _suspects(run: Subject, ranked: Suspects, labels: dict[int, int], show: Show) -> list[Suspect]:
    ids = ranked.ids[:SHOWN_SUSPECTS]
    samples = run.samples(Addresses(ids, np.zeros(len(ids), dtype=np.int64)))
    lines = courses(*losses_of(run.rows, run.is_of_views), ids)
    highest = max((loss for line in lines for loss in line if loss is not None), default=1.0)
    return [
        Suspect(
            rank,
            int(sample),
            run.class_name(target),
            float(ranked.losses[rank - 1]),
            int(ranked.looks[rank - 1]),
            _element(show, inputs, run, target, int(sample)),
            _course(line, highest),
        )
        for rank, (sample, (inputs, target), line) in enumerate(zip(ids, samples, lines, strict=True), start=1)
    ]


def _course(losses: list[float | None], highest: float) -> str:
    """A sample's loss over the training, as a line."""
    width, height = 120, 28
    points = [
        f"{index * width / max(1, len(losses) - 1):.1f},{height - 1 - (height - 2) * loss / highest:.1f}"
        for index, loss in enumerate(losses)
        if loss is not None
    ]
    said = ", ".join("–" if loss is None else f"{loss:.2f}" for loss in losses)
    return (
        f'<svg class="course" viewBox="0 0 {width} {height}" role="img" aria-label="loss over the training: '
        f'{html.escape(said)}"><polyline points="{" ".join(points)}"/></svg>'
    )


def _table(run: Subject, ranked: Suspects, labels: dict[int, int]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["rank", "id", "label", "loss", "looks"])
    for rank, (sample, loss, looks) in enumerate(zip(ranked.ids, ranked.losses, ranked.looks, strict=True), start=1):
        label = run.class_name(labels[int(sample)]) if int(sample) in labels else ""
        writer.writerow([rank, int(sample), label, f"{loss:.4f}", int(looks)])
    return file.getvalue()
