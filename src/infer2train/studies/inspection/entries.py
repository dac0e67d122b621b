"""What stands in the sections of the page: picks beside what lost to them, the most extreme, suspects."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from infer2train.draws.addresses import Addresses
from infer2train.studies.inspection.findings import courses, extremes
from infer2train.studies.inspection.shown import Show, as_html, shown
from infer2train.studies.inspection.subject import Sample, Subject
from infer2train.studies.inspection.suspects import Suspects, losses_of
from infer2train.studies.inspection.tokens import TokenText, as_marked, ids_of, tokens_of

SHOWN_PICKS, SHOWN_RIVALS, SHOWN_EXTREMES, SHOWN_SUSPECTS = 120, 4, 60, 100


@dataclass(frozen=True)
class Seen:
    """One view on the page: its element, its score, whether it was picked, and what the model has for its loss now."""

    element: str
    score: float
    is_picked: bool
    now: float | None


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
    file: str
    """Its name; nothing where samples are none."""
    loss: float
    looks: int
    element: str
    course: str


@dataclass(frozen=True)
class Gaze:
    """How samples are shown.

    Args:
        show: makes an image or a text of the inputs of one sample; None: as they are.
        token_text: of the id of a token; None: the id.
    """

    show: Show | None
    token_text: TokenText | None

    def element(self, sample: Sample, alt: str) -> str:
        """One sample as HTML."""
        if self.show is None and ids_of(sample.inputs) is not None:
            return as_marked(tokens_of(sample.inputs, sample.target, sample.losses), self.token_text)
        return as_html((self.show or shown)(sample.inputs), alt)


def spread(index: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " m"]:
    """At most `count` of them, from the first to the last at equal distances."""
    return index if len(index) <= count else index[np.linspace(0, len(index) - 1, count).round().astype(np.int64)]


def beside(run: Subject, gaze: Gaze) -> list[Beside]:
    """Picks over the whole run, each with those of its rivals that have rows, the hardest first."""
    rows, lost = run.rows, ~run.rows["is_trained"]
    group, has_rivals = _groups(run)
    found = []
    for pick in spread(np.flatnonzero(rows["is_picked"] & has_rivals), SHOWN_PICKS).tolist():
        first, last = np.searchsorted(group, [group[pick], group[pick] + 1])
        rivals = first + np.flatnonzero(lost[first:last])
        rivals = spread(rivals[np.argsort(-rows["score"][rivals], kind="stable")], SHOWN_RIVALS)
        found.append(_entry(run, gaze, np.concatenate([[pick], rivals])))
    return found


def _groups(run: Subject) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Of each row who its rivals are with, in ascending order, and whether some of them lost."""
    rows = run.rows
    group = rows["draw"].astype(np.int64)
    if run.is_of_views:  # a row's rivals are in its slot, and in its draw where samples are picked
        group = group * (int(rows["slot"].max()) + 1) + rows["slot"]
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    num_lost = np.add.reduceat(~rows["is_trained"], starts, dtype=np.int64)
    return group, np.repeat(num_lost > 0, np.diff(np.append(starts, len(group))))


def _entry(run: Subject, gaze: Gaze, places: Int64[np.ndarray, " p"]) -> Beside:
    """The row of a pick, and after it those of some of its rivals."""
    rows, pick = run.rows, places[0]
    samples = run.samples(Addresses(rows["id"][places], rows["seed"][places]))
    step, version = int(rows["step"][pick]), int(rows["version"][pick])
    views = [
        Seen(
            _element(run, gaze, sample, int(rows["id"][place])),
            float(rows["score"][place]),
            bool(place == pick),
            sample.now,
        )
        for place, sample in zip(places, samples, strict=True)
    ]
    name, lag = run.class_name(samples[0].target), step - version if version >= 0 else 0
    return Beside(int(rows["id"][pick]), name, step, lag, views)


def _element(run: Subject, gaze: Gaze, sample: Sample, number: int) -> str:
    return gaze.element(sample, f"sample {number}, {run.class_name(sample.target)}")


def most_extreme(run: Subject, gaze: Gaze) -> list[Beside]:
    """Each sample once, at its highest score."""
    places = extremes(run.rows)
    places = places[np.sort(np.unique(run.rows["id"][places], return_index=True)[1])][:SHOWN_EXTREMES]
    return [_entry(run, gaze, place[None]) for place in places]


def suspect_entries(run: Subject, ranked: Suspects, gaze: Gaze) -> list[Suspect]:
    """The first of the ranking."""
    ids = ranked.ids[:SHOWN_SUSPECTS]
    samples = run.samples(Addresses(ids, np.zeros(len(ids), dtype=np.int64)))
    lines = courses(*losses_of(run.rows, run.is_of_views), ids)
    highest = max((loss for line in lines for loss in line if loss is not None), default=0.0) or 1.0
    return [
        Suspect(
            rank,
            int(number),
            run.class_name(sample.target),
            Path(run.file_of(int(number))).name if run.file_of else "",
            float(ranked.losses[rank - 1]),
            int(ranked.looks[rank - 1]),
            _element(run, gaze, sample, int(number)),
            _course(line, highest),
        )
        for rank, (number, sample, line) in enumerate(zip(ids, samples, lines, strict=True), start=1)
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
