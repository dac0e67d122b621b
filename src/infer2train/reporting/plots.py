"""The curves of a report, each figure as one SVG element to stand inside a page; and how a method looks in all of them.

Which numbers are drawn is decided in `figures`; how a figure becomes an element of a page in `svg`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from infer2train.reporting.curves import Curve, ErrorCurves
from infer2train.reporting.svg import MUTED, SERIES, drawn
from infer2train.reporting.tables import grouped


class Style(NamedTuple):
    """How one method looks in every figure: never by colour alone."""

    colour: str
    marker: str
    symbol: str


MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
"""The shape on a line, and the letter that looks like it for the page's legend."""


def styles(methods: Sequence[str], baseline: str | None) -> dict[str, Style]:
    """One style for each method: the baseline's is red, the others follow in order, beginning with blue.

    Beyond seven methods colours come again, with another marker.
    """
    looks = {method: Style(SERIES[0], *MARKERS[0]) for method in methods}
    for number, method in enumerate(method for method in methods if method != baseline):
        colour, marker = SERIES[1 + number % (len(SERIES) - 1)], MARKERS[(1 + number) % len(MARKERS)]
        looks[method] = Style(colour, *marker)
    return looks


def error_curves(
    curves: Mapping[str, ErrorCurves],
    looks: Mapping[str, Style],
    *,
    first_epoch: int = 0,
    over: str = "epoch",
    title: str = "Error curves",
    legend: bool = False,
) -> str:
    """Error over epochs in the form of the paper's figure 1: training dotted, validation solid, bands of one deviation.

    A panel of the final epochs shows the validation error alone: training errors lie far off and would flatten it.

    Args:
        curves: by method, as fractions.
        looks: the methods' styles.
        over: what they are drawn over, epoch or step.
        first_epoch: where the panel begins: 0 for panel (a), the final epochs for panel (b).
        title: what a screen reader says.
        legend: name the lines inside the figure, where no page does it beside.

    Returns:
        One `<svg>` element.
    """

    def draw(axes: Any) -> None:
        for method, found in curves.items():
            look = looks[method]
            random, mined, validation = (
                _percent(curve.since(first_epoch)) for curve in (found.random, found.mined, found.validation)
            )
            if first_epoch == 0:
                _line(axes, random, look.colour, linestyle=(0, (5, 1.6, 1, 1.6)), width=0.9)
                _line(axes, mined, look.colour, linestyle=(0, (1, 1.5)), width=1.3)
            _line(axes, validation, look.colour, width=1.7, marker=look.marker)
        axes.set_xlabel(over)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter(_grouped)
        axes.set_ylabel("error, %")
        if first_epoch == 0:
            axes.set_ylim(bottom=0)
        if legend:
            _legend(axes, {method: looks[method] for method in curves}, with_training=first_epoch == 0)

    has_test = any(len(found.validation) for found in curves.values())
    name = f"errors-{over}-{first_epoch}" if has_test else "training-errors"
    return drawn(name, title, 3.4 if legend else 2.9, draw)


def error_over_seconds(
    curves: Mapping[str, Curve], looks: Mapping[str, Style], *, error: str = "test error", title: str
) -> str:
    """Error over the wall-clock, bands of one deviation: what the same time gives.

    Args:
        curves: by method, fractions over seconds.
        looks: the methods' styles.
        error: what it is called.
        title: what a screen reader says.

    Returns:
        One `<svg>` element.
    """
    unit, divisor = unit_of(max(float(curve.x[-1]) for curve in curves.values()))

    def draw(axes: Any) -> None:
        for method, curve in curves.items():
            shown = _percent(curve)
            scaled = Curve(curve.x / divisor, shown.mean, shown.low, shown.high)
            _line(axes, scaled, looks[method].colour, width=1.7, marker=looks[method].marker)
        axes.set_xlabel(f"wall-clock, {unit}")
        axes.set_ylabel(f"{error}, %")
        axes.set_xlim(left=0)

    return drawn("errors-seconds", title, 2.9, draw)


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit in which a time reads best, and its length in seconds."""
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def _legend(axes: Any, looks: Mapping[str, Style], *, with_training: bool) -> None:
    """Names below the axes: methods by colour and marker, training and validation by their lines."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=look.colour, marker=look.marker, markersize=3.6, label=method) for method, look in
             looks.items()]  # fmt: skip
    if with_training:
        lines.append(Line2D([], [], color=MUTED, linestyle=(0, (1, 1.5)), label="training, views trained on"))
        lines.append(Line2D([], [], color=MUTED, linestyle=(0, (5, 1.6, 1, 1.6)), label="training, random views"))
        lines.append(Line2D([], [], color=MUTED, label="test"))
    axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=7.5)


def step_curves(curves: Mapping[str, Curve], looks: Mapping[str, Style], *, label: str, title: str, zero: bool) -> str:
    """One quantity over steps, a line for each method.

    Args:
        curves: by method.
        looks: the methods' styles.
        label: the quantity with its unit.
        title: what a screen reader says.
        zero: whether the axis begins at 0.

    Returns:
        One `<svg>` element.
    """

    def draw(axes: Any) -> None:
        for method, found in curves.items():
            _line(axes, found, looks[method].colour, width=1.3, marker=looks[method].marker)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(_grouped)
        if zero:
            axes.set_ylim(bottom=0)

    return drawn(f"steps-{label}", title, 2.4, draw)


def _grouped(value: float, _: Any) -> str:
    """A large number on an axis."""
    return grouped(round(value))


def _percent(curve: Curve) -> Curve:
    """Fractions as per cent."""
    return Curve(curve.x, 100 * curve.mean, 100 * curve.low, 100 * curve.high)


def _line(axes: Any, curve: Curve, colour: str, *, width: float, linestyle: Any = "-", marker: str = "") -> None:
    """A curve with its band; about six markers on it, so that it can be told without its colour."""
    if not len(curve):
        return
    every = max(1, len(curve) // 6)
    first = every * [marker for marker, _ in MARKERS].index(marker) // len(MARKERS) if marker else 0
    axes.plot(
        curve.x, curve.mean, color=colour, linewidth=width, linestyle=linestyle,
        marker=marker, markersize=3.6, markevery=(first, every), markeredgewidth=0,
    )  # fmt: skip
    if np.any(curve.high > curve.low):
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)
