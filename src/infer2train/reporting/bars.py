"""Rows of a report beside the names of their methods: where the wall-clock went, and differences with their intervals.

Like `plots`, which draws the curves: one SVG element a figure, of numbers that `figures` decides on.
"""

from collections.abc import Iterable, Mapping
from textwrap import wrap
from typing import Any

from infer2train.reporting.plots import Style, unit_of
from infer2train.reporting.statistics import PairedDifference
from infer2train.reporting.svg import INK, MUTED, drawn

LONGEST_LINE, MOST_LINES = 20, 3
"""Letters of a line of a method's name beside a bar, and its lines."""
PARTS = {
    "irreducible models": "#a23b72",
    "training": "#5f6b7a",
    "batches": "#2c7da0",
    "views": "#0b7f81",
    "scoring": "#2063ca",
    "publishing": "#9148b5",
    "evaluation": "#a86001",
    "checkpoint": "#188050",
    "other": "#828c99",
}
"""The parts of the wall-clock, in the order of the bar. White letters can be read on all but the last."""


def time_budget(seconds: Mapping[str, Mapping[str, float]], *, title: str = "Time budget") -> str:
    """Where the wall-clock went: one stacked bar for each method, with the share of every large part.

    Args:
        seconds: by method, seconds of each part and of their `total`; what no part explains is drawn as `other`.
        title: what a screen reader says.

    Returns:
        One `<svg>` element.
    """
    unit, divisor = unit_of(max((sum(budget(parts).values()) for parts in seconds.values()), default=0.0))

    def draw(axes: Any) -> None:
        for row, parts in enumerate(seconds.values()):
            left, total = 0.0, sum(budget(parts).values()) / divisor
            for name, value in budget(parts).items():
                width = value / divisor
                axes.barh(row, width, left=left, height=0.62, color=PARTS[name], edgecolor="none")
                if total and width / _widest(seconds, divisor) > 0.11:
                    axes.text(left + width / 2, row, f"{100 * width / total:.0f} %", ha="center", va="center",
                              fontsize=8, color="#ffffff" if name != "other" else "#10151b")  # fmt: skip
                left += width
        axes.set_yticks(range(len(seconds)), [_short(method) for method in seconds])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set_xlabel(unit)

    return drawn("budget", title, 0.7 + _height(seconds), draw)


def difference_intervals(
    differences: Mapping[str, PairedDifference],
    looks: Mapping[str, Style],
    *,
    error: str = "test error",
    title: str = "Differences from the baseline with 95 % intervals",
) -> str:
    """Each method's difference from the baseline with its 95 % interval, beside the line of no difference.

    Args:
        differences: by method, of fractions.
        looks: the methods' styles.
        error: what they are of.
        title: what a screen reader says.

    Returns:
        One `<svg>` element.
    """

    def draw(axes: Any) -> None:
        axes.axvline(0, color=MUTED, linewidth=0.9)
        for row, (method, found) in enumerate(differences.items()):
            look = looks[method]
            if found.low is not None and found.high is not None:
                axes.plot([100 * found.low, 100 * found.high], [row, row], color=look.colour, linewidth=2.0)
            axes.plot([100 * found.mean], [row], marker=look.marker, markersize=6, color=look.colour)
        axes.set_yticks(range(len(differences)), [_short(method) for method in differences])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(differences) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.set_xlabel(f"difference in {error}, points (left: fewer errors)")

    return drawn("differences", title, 0.75 + _height(differences), draw)


def parts_of(seconds: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The parts that `time_budget` draws and their colours, for a legend."""
    drawn_parts = {name for parts in seconds.values() for name in budget(parts)}
    return {name: colour for name, colour in PARTS.items() if name in drawn_parts}


def budget(seconds: Mapping[str, float]) -> dict[str, float]:
    """The parts that took any time, in the order of the bar, with what they leave of the total as `other`."""
    parts = {name: seconds[name] for name in PARTS if seconds.get(name)}
    rest = seconds.get("total", 0.0) - sum(parts.values())
    return {**parts, "other": rest} if rest > 0.005 * seconds.get("total", 0.0) else parts


def _short(name: str) -> str:
    """A name that leaves room for the plot beside it: in a few lines, and cut where it needs more."""
    return "\n".join(wrap(name, LONGEST_LINE, max_lines=MOST_LINES, placeholder="…"))


def _height(names: Iterable[str]) -> float:
    """Inches of a figure that has a row for each name."""
    lines = [_short(name).count("\n") for name in names]
    return 0.34 * len(lines) + 0.12 * sum(lines)


def _widest(seconds: Mapping[str, Mapping[str, float]], divisor: float) -> float:
    """The longest bar, in the axis' unit."""
    return max(sum(budget(parts).values()) for parts in seconds.values()) / divisor
