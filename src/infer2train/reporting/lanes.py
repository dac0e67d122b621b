"""The timeline of a run's last steps: kept in `timeline.json`, drawn with one row for each lane.

The training loop saves it beside the run after each epoch; the report draws it. Waiting for scores is red wherever it
is seen.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infer2train.observe.timeline import AHEAD, TRAINER, Span
from infer2train.reporting.gallery import replace_file
from infer2train.reporting.svg import INK, SERIES, drawn

TIMELINE = "timeline.json"
WIDTH_INCHES = 8.6
WAITING = "waiting for scores"
LOOKS = {
    (True, "scores"): (WAITING, SERIES[0]),
    (True, "views"): ("picked views", "#3b9496"),
    (True, "train"): ("training", "#5f6b7a"),
    (True, "publish"): ("publishing weights", "#9148b5"),
    (False, "views"): ("candidates’ views", "#0b7f81"),
    (False, "forward"): ("scoring", "#2063ca"),
    (False, "validate"): ("validation", "#7f8b9c"),
    (False, "refresh"): ("new weights", "#a86001"),
    (False, "prepare"): ("preparing new weights", "#bb7f22"),
}
"""What a span is called and its colour, by whether it is the trainer's and its name; in the order of the legend."""


def save_timeline(folder: Path, spans: Sequence[Span]) -> None:
    """Write `timeline.json` into an existing folder, whole or not at all: times count from the first span.

    Args:
        folder: the run's.
        spans: in any order.
    """
    first = min((span.started for span in spans), default=0.0)
    rows = [
        {**vars(span), "started": round(span.started - first, 6), "seconds": round(span.seconds, 6)}
        for span in sorted(spans, key=lambda span: span.started)
    ]
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    replace_file(folder / TIMELINE, text.encode())


def load_timeline(folder: Path) -> list[Span]:
    """The spans that `save_timeline` wrote; none where there are none.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / TIMELINE
    if not path.is_file():
        return []
    try:
        return [Span(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{TIMELINE} must hold a list of spans: got {error!r} in {folder}; remove it to report without a timeline"
        ) from error


def picture(spans: Sequence[Span]) -> str:
    """One row for each lane, the trainer's on top.

    Args:
        spans: with at least one of the trainer.

    Returns:
        One `<svg>` element.
    """
    begin, end = extent(spans)
    rows = lanes(spans)
    unit, factor = ("ms", 1000.0) if end - begin < 1 else ("seconds", 1.0)

    def draw(axes: Any) -> None:
        for row, lane in enumerate(rows):
            for (is_trainer, name), (_, colour) in LOOKS.items():
                found = [s for s in spans if (s.lane, s.name, s.lane == TRAINER) == (lane, name, is_trainer)]
                pieces = [piece for span in found if (piece := _within(span, begin, end))]
                bars = [(factor * (piece.started - begin), factor * piece.seconds) for piece in pieces]
                axes.broken_barh(bars, (row - 0.34, 0.68), color=colour, linewidth=0)
            lost = [factor * (span.started - begin) for span in spans if (span.lane, span.name) == (lane, "lost")]
            axes.plot(lost, [row] * len(lost), "x", color=INK, markersize=9, markeredgewidth=2)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, factor * (end - begin))
        axes.set_xlabel(unit)

    return drawn("lanes", heading(spans), 0.65 + 0.42 * len(rows), draw, width_inches=WIDTH_INCHES)


def heading(spans: Sequence[Span]) -> str:
    """What is seen in the picture, in a sentence."""
    steps = sum(span.lane == TRAINER and span.name == "train" for span in spans)
    return f"The last {steps} steps: the trainer waits {100 * waiting_share(spans):.1f} % of the time for scores"


def waiting_share(spans: Sequence[Span]) -> float:
    """The part of the time in the picture that the trainer waits, 0 to 1."""
    begin, end = extent(spans)
    waiting = sum(span.seconds for span in spans if (span.lane, span.name) == (TRAINER, "scores"))
    return waiting / (end - begin) if end > begin else 0.0


def legend(spans: Sequence[Span]) -> dict[str, str]:
    """What is seen, with its colour."""
    seen = {(span.lane == TRAINER, span.name) for span in spans}
    return {called: colour for key, (called, colour) in LOOKS.items() if key in seen}


def lanes(spans: Iterable[Span]) -> list[str]:
    """The trainer, then each oracle with what it does beside scoring."""
    found = {span.lane for span in spans}
    return sorted(found, key=lambda lane: (lane != TRAINER, lane.removesuffix(AHEAD), lane.endswith(AHEAD)))


def is_inline(spans: Iterable[Span]) -> bool:
    """Whether the oracle scores in the trainer's own process, and so in its time."""
    return "oracle" in {span.lane for span in spans}


def extent(spans: Iterable[Span]) -> tuple[float, float]:
    """When the trainer's first span begins, and its last one ends."""
    trainer = [span for span in spans if span.lane == TRAINER]
    return min(span.started for span in trainer), max(span.started + span.seconds for span in trainer)


def _within(span: Span, begin: float, end: float) -> Span | None:
    """The part of a span that is seen."""
    started, ended = max(begin, span.started), min(end, span.started + span.seconds)
    return replace(span, started=started, seconds=ended - started) if ended > started else None
