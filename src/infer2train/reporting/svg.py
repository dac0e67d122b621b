"""A matplotlib figure as one SVG element that belongs to its page.

Text stays text (it takes the page's font and can be searched), colours are CSS variables with the light theme's value
as the fallback (so a page can turn dark), and the same numbers give the same bytes whatever the user's matplotlib
settings are. Drawn without pyplot, so nothing outlives a call.
"""

import io
import re
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import quoteattr

INK, MUTED, GRID = "#1d2530", "#5d6877", "#dde2e8"
SERIES = ("#c4302b", "#2063c9", "#18804f", "#8b44ac", "#a86000", "#0b7f8a", "#66707c")
"""Red is the baseline, blue the first treatment and green the next, as in the paper's figure 1."""
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}
"""The colours that a page may replace, and the variable that replaces each."""

WIDTH_INCHES = 4.2
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names are the user's: a $ in one is a $
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.solid_capstyle": "round",
}


def drawn(
    name: str, title: str, height_inches: float, draw: Callable[[Any], None], *, width_inches: float = WIDTH_INCHES
) -> str:
    """One figure with one pair of axes.

    Args:
        name: tells its ids from those of other figures on the page.
        title: what a screen reader says.
        height_inches: of the figure, which scales with its box.
        draw: draws on the axes that it is given.
        width_inches: of the figure.

    Returns:
        One `<svg>` element.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_SETTINGS, "svg.hashsalt": name})
        figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embeddable(file.getvalue(), title)


def standalone(svg: str) -> str:
    """A figure as a file of its own: on white, its colours fixed, for viewers that know no CSS variables."""
    return re.sub(r"var\(--[\w-]+, ([^)]+)\)", r"\1", svg).replace("<svg ", '<svg style="background:#fff" ', 1) + "\n"


def _embeddable(svg: str, title: str) -> str:
    """The bare element: no prologue, no metadata, only the ids that are referred to, themed colours, a spoken title."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # a style would rule the whole page
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if f"#{match[1]}" in svg else "", svg)
    svg = re.sub("|".join(VARIABLES), lambda match: f"var({VARIABLES[match[0]]}, {match[0]})", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans, sans-serif)", svg)
    root = f'<svg role="img" aria-label={quoteattr(title)} stroke-linejoin="round" stroke-linecap="butt" '
    return svg.replace("<svg ", root, 1)
